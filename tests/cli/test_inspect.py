import orjson

from tests.cli.conftest import Desk


def test_it_shows_what_became_of_each_shard_and_what_it_cost(desk: Desk) -> None:
    desk.run()

    shown = desk.command("inspect", str(desk.run_folder))

    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count(": merged, ") == 3
    assert "Passed: 25 of 25 rows succeeded" in shown.stdout
    assert "Next: Nothing: the run is finished." in shown.stdout


def test_it_adds_up_the_money_that_the_report_holds(desk: Desk) -> None:
    report = orjson.loads(desk.run("--json").stdout)

    (seen,) = orjson.loads(desk.command("inspect", str(desk.run_folder), "--json").stdout)

    assert round(seen["spent_usd"], 6) == report["cost"]["usd"] > 0
    assert round(sum(shard["cost_usd"] for shard in seen["shards"]), 6) == report["cost"]["usd"]


def test_it_shows_every_generation_from_the_folder_of_one(desk: Desk) -> None:
    desk.run()
    desk.run("--again")

    seen = orjson.loads(desk.command("inspect", f"{desk.run_folder}/g2", "--json").stdout)

    assert [one["path"].rpartition("/")[2] for one in seen] == ["g1", "g2"]


def test_it_writes_nothing_and_needs_no_provider(desk: Desk) -> None:
    desk.run()
    before = {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*")}
    calls = desk.simulator.ledger()["anthropic"]["calls"]

    desk.command("inspect", desk.run_folder.as_uri())

    assert {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*")} == before
    assert desk.simulator.ledger()["anthropic"]["calls"] == calls


def test_a_folder_without_a_run_is_refused(desk: Desk) -> None:
    shown = desk.command("inspect", str(desk.folder))

    assert (shown.returncode, shown.stderr.startswith("InputError: ")) == (2, True)
