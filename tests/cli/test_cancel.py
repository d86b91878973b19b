"""The command that ends what a run has at the provider, through the console script and the real SDKs."""

import signal
import time
from typing import Any

import orjson
import pytest

from tests.cli.conftest import Desk
from tests.cli.test_run import EACH_ROW_ONCE, read_until


@pytest.fixture
def abandoned(desk: Desk) -> Desk:
    """Leave three running batches that no process waits for."""
    desk.simulator.turn(batch_seconds=3600)
    with desk.start("run", str(desk.spec_file)) as process:
        read_until(process, "are running")
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return desk


def cancel(desk: Desk, *options: str) -> Any:
    done = desk.command("cancel", str(desk.run_folder), str(desk.spec_file), "--json", *options)
    assert done.returncode == 0, done.stderr
    return orjson.loads(done.stdout)


def cancel_calls(desk: Desk) -> int:
    return int(desk.simulator.ledger()["anthropic"]["calls"].get("cancel", 0))


def test_every_batch_that_runs_is_cancelled_once_and_the_rows_are_asked_after_the_run_has_ended(
    abandoned: Desk,
) -> None:
    first, second = cancel(abandoned), cancel(abandoned)
    seen = abandoned.command("inspect", str(abandoned.run_folder)).stdout

    assert (first["cancelled"], first["ended"], first["requests"]) == (3, False, 25)
    assert second["cancelled"] == 0
    assert cancel_calls(abandoned) == 3
    assert seen.count(", cancelled") == 3

    abandoned.simulator.turn(batch_seconds=0)
    abandoned.simulator.clock(advance_seconds=4000, settle=True)
    resumed, again = abandoned.run(), abandoned.run("--again")

    assert resumed.returncode == 1
    assert "3 batches of this run were cancelled on request." in resumed.stderr
    assert again.returncode == 0, again.stderr
    assert abandoned.ask(EACH_ROW_ONCE) == [(25, 25, 0, 24)]
    assert abandoned.simulator.ledger()["anthropic"]["rows"]["charged"] == 25


def test_a_batch_that_has_ended_is_left_alone_and_its_answers_land(abandoned: Desk) -> None:
    (run,) = orjson.loads(abandoned.command("inspect", str(abandoned.run_folder), "--json").stdout)
    abandoned.simulator.finish(run["shards"][0]["batch_id"])

    done = cancel(abandoned)

    assert (done["cancelled"], cancel_calls(abandoned)) == (2, 2)
    assert run["shards"][0]["batch_id"] not in done["batches"]


def test_a_run_that_has_ended_says_so(desk: Desk) -> None:
    desk.run()

    done = desk.command("cancel", str(desk.run_folder), str(desk.spec_file))

    assert (done.returncode, cancel_calls(desk)) == (0, 0)
    assert "the run has ended, and none of its batches is running" in done.stdout


def test_a_folder_without_a_run_is_refused(desk: Desk) -> None:
    done = desk.command("cancel", str(desk.folder), str(desk.spec_file))

    assert (done.returncode, done.stderr.startswith("InputError: ")) == (2, True)


def test_a_provider_that_does_not_answer_is_asked_again_later(abandoned: Desk) -> None:
    abandoned.simulator.fault(
        provider="anthropic", kind="status", endpoint="cancel", status=500, retry_after=0.1, times=None
    )

    done = abandoned.command("cancel", str(abandoned.run_folder), str(abandoned.spec_file))

    assert done.returncode == 3
    abandoned.simulator.clear_faults()
    assert cancel(abandoned)["cancelled"] == 3


def test_the_vendor_is_not_asked_about_batches_that_are_elsewhere(abandoned: Desk) -> None:
    done = abandoned.command("cancel", str(abandoned.run_folder), ANTHROPIC_API_KEY="any")

    assert done.returncode == 2
    assert "127.0.0.1" in done.stderr
    assert "provider.base_url" in done.stderr


def test_a_file_with_the_provider_alone_is_enough(abandoned: Desk) -> None:
    file = abandoned.folder / "provider.yaml"
    file.write_text(f"provider: {{base_url: '{abandoned.simulator.url}', api_key_env: DESK_KEY}}\n")

    done = abandoned.command("cancel", str(abandoned.run_folder), str(file))

    assert done.returncode == 0, done.stderr
    assert "3 batches cancelled" in done.stdout


def test_a_worker_that_asks_in_real_time_stops_and_keeps_what_was_answered(desk: Desk) -> None:
    desk.simulator.turn(answer_latency=4.0)
    desk.write(way="now", pace={"rows_per_batch": 10, "max_concurrency": 1})
    with desk.start("run", str(desk.spec_file)) as process:
        read_until(process, "asked in real time")
        while not desk.charged():
            time.sleep(0.05)
        done = cancel(desk)
        again = cancel(desk)
        _, said = process.communicate(timeout=60)

    assert (done["cancelled_asking"], done["cancelled"], done["ended"]) == (3, 0, False)
    assert again["cancelled_asking"] == 0
    assert process.returncode == 0, said  # some rows have succeeded
    assert "Shard 3: cancelled on request" in said
    answered = desk.charged()
    assert 0 < answered < 25
    assert desk.ask("SELECT count(*) FROM labels") == [(answered,)]
    desk.simulator.turn(answer_latency=0.0)
    assert desk.run("--again").returncode == 0
    assert desk.ask(EACH_ROW_ONCE) == [(25, 25, 0, 24)]
    assert desk.charged() == 25
