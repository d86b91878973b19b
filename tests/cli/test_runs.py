"""The list of a workspace's runs, through the console script, of runs that the real command has made."""

import shutil
import signal
from typing import Any

import orjson

from tests.cli.conftest import Desk
from tests.cli.test_run import read_until


def listed(desk: Desk, *options: str) -> list[dict[str, Any]]:
    shown = desk.command("runs", str(desk.folder / "workspace"), "--json", *options)
    assert shown.returncode == 0, shown.stderr
    return orjson.loads(shown.stdout)  # type: ignore[no-any-return]


def test_a_run_is_listed_while_it_runs_and_after_it_has_ended(desk: Desk) -> None:
    desk.simulator.turn(batch_seconds=3600)
    with desk.start("run", str(desk.spec_file)) as process:
        read_until(process, "are running")
        process.send_signal(signal.SIGKILL)
        process.communicate()

    (running,) = listed(desk)
    desk.simulator.turn(batch_seconds=0)
    desk.simulator.clock(advance_seconds=4000, settle=True)
    report = orjson.loads(desk.run("--json").stdout)
    watched = desk.command("runs", str(desk.folder / "workspace"), "--watch").stdout
    (ended,) = listed(desk)

    assert (running["state"], running["rows"], running["budget_usd"]) == ("running", 25, 25.0)
    assert running["progress"]["shards"] == {"submitted": 3}
    assert (ended["state"], ended["succeeded"], ended["progress"]) == ("passed", 25, None)
    assert round(ended["usd"], 6) == report["cost"]["usd"] > 0
    assert "25/25" in watched


def test_each_reading_of_the_source_is_listed_the_last_first_and_found_again_in_the_run_folders(
    desk: Desk,
) -> None:
    desk.run()
    desk.ask("UPDATE tickets SET subject = 'new' WHERE id < 3")
    desk.simulator.fault(provider="anthropic", kind="errored", every=1, times=100)
    desk.run("--again")

    before = listed(desk)
    shutil.rmtree(desk.folder / "workspace" / ".registers" / "runs")
    forgotten = listed(desk)
    rebuilt = listed(desk, "--rebuild")

    assert [(one["path"][-3:], one["state"], one["succeeded"], one["rows"]) for one in before] == [
        ("/g2", "failed", 0, 3),
        ("/g1", "passed", 25, 25),
    ]
    assert (forgotten, rebuilt) == ([], before)
    assert [one["path"] for one in listed(desk, "--limit", "1")] == [before[0]["path"]]
