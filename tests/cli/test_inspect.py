import orjson
import pytest

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

    assert 0 < seen["spent_usd"] == pytest.approx(report["cost"]["usd"], abs=1e-6)
    assert sum(shard["cost_usd"] for shard in seen["shards"]) == pytest.approx(seen["spent_usd"])


def test_it_shows_what_the_vendors_cache_has_won(desk: Desk) -> None:
    desk.simulator.turn(cached_tokens=5)
    report = orjson.loads(desk.run("--json").stdout)

    (seen,) = orjson.loads(desk.command("inspect", str(desk.run_folder), "--json").stdout)
    shown = desk.command("inspect", str(desk.run_folder)).stdout

    assert seen["caching"] == report["caching"]
    assert (seen["caching"]["default"]["hit_rate"], seen["caching"]["default"]["won_usd"] > 0) == (1.0, True)
    assert (
        "  Caching by the route default: 100.0% of the answers read from the vendor's cache, which won $0.0"
        in shown
    )


def test_it_shows_the_route_of_each_shard_and_what_each_route_has_done(desk: Desk) -> None:
    sql = "SELECT *, CASE WHEN id < 4 THEN 'urgent' END AS how FROM tickets"
    desk.write(source={"sql": sql}, routes={"urgent": {"way": "now"}}, route_column="how")
    report = orjson.loads(desk.run("--json").stdout)

    (seen,) = orjson.loads(desk.command("inspect", str(desk.run_folder), "--json").stdout)
    shown = desk.command("inspect", str(desk.run_folder)).stdout

    routes = {one["name"]: one for one in seen["routes"]}
    assert {name: one["succeeded"] for name, one in routes.items()} == {"default": 21, "urgent": 4}
    for name, one in routes.items():
        assert one["requests"] == sum(shard["requests"] for shard in seen["shards"] if shard["route"] == name)
        assert 0 < one["cost_usd"] == pytest.approx(report["routes"][name]["usd"], abs=1e-6)
    assert {shard["way"] for shard in seen["shards"] if shard["route"] == "urgent"} == {"now"}
    assert "  Route urgent (claude-haiku-4-5, now): 4 requests, 4 rows answered, $0.0" in shown
    assert (
        shown.count(", route urgent (now): merged, "),
        shown.count(", route default (batch): merged, "),
    ) == (1, 3)


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
