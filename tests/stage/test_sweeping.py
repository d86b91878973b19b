"""Batches of processes that froze before their creation: found while the run lasts, at its end, and by the next run."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_batch_llm.commands.run_folder import inspect as command
from airflow_batch_llm.core.model import Lease, Outcome, ShardFile
from airflow_batch_llm.errors import Refused
from airflow_batch_llm.stage.inspection import Inspected, inspect
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.run import Pause
from tests.stage.world import Bench, let_go
from tests.vendors import RECOGNISABLE

ROWS = 20

#: Dollars per million tokens: a thousandth for each token of a batch.
DEAR = {"input": 2000.0, "output": 2000.0}

#: Providers whose batches are recognised while they run.
recognisable = pytest.mark.parametrize("bench", RECOGNISABLE, indirect=True)


class _Frozen:
    """A provider that freezes between its last look and its creation, and sends when it is told to.

    By then the end of the run may have deleted the upload, so the test sends another: to the next look it is a batch that
    the vendor lists late.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._creation: Callable[..., str] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    def submit(self, shard: ShardFile, upload: str, lease: Lease) -> str:
        kept = shard.path.read_bytes()

        def send(*, is_new: bool) -> str:
            shard.path.parent.mkdir(parents=True, exist_ok=True)
            shard.path.write_bytes(kept)
            late = Lease(expires_at=lease.expires_at + 1_000_000)
            sent = self._provider.upload(shard) if is_new else upload
            return self._provider.submit(shard, sent, late)  # type: ignore[no-any-return]

        self._creation = send
        raise _Freeze

    def thaw(self, *, is_new: bool = True) -> str:
        assert self._creation is not None
        return self._creation(is_new=is_new)


class _DiesBeforeItsReport:
    """A workspace of a process that is killed when it is about to store the report."""

    def __init__(self, workspace: Any) -> None:
        self._workspace = workspace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workspace, name)

    def create(self, path: str, data: bytes) -> bool:
        if path.endswith("/report.json"):
            raise _Freeze
        return self._workspace.create(path, data)  # type: ignore[no-any-return]


class _Freeze(BaseException):
    """The process goes no further."""


def frozen_before_its_creation(bench: Bench, **changes: Any) -> _Frozen:
    """The run has an intent without an answer, and its maker is not dead."""
    run = bench.run()
    frozen = _Frozen(run.parts.provider)
    with pytest.raises(_Freeze):
        bench.run(parts={"provider": frozen}, prices={bench.world.model: DEAR}, **changes).advance()
    let_go(run)
    return frozen


def in_the_ledger(batch_id: str) -> str:
    """Return the simulator's name for it."""
    return batch_id.rpartition("/")[2]


def finish(bench: Bench, *batch_ids: str) -> None:
    """These have done all their work."""
    for batch_id in batch_ids:
        bench.world.simulator.finish(in_the_ledger(batch_id))


def billed(bench: Bench) -> float:
    """Return the cost of all batches together."""
    tokens = bench.world.ledger()["tokens"]
    return float(tokens["input"] + tokens["output"]) / 1000


def looked_at(bench: Bench) -> Inspected:
    return inspect(RunFolder(workspace=bench.world.workspace(), run="dag/task/run"), bench.world.clock())


def finished_by_another(bench: Bench) -> Finished:
    bench.world.sleep(1000)  # the lease is over
    return bench.complete()


def loose(bench: Bench) -> list[Path]:
    return [
        path
        for path in (bench.world.folder / "workspace" / ".registers" / "loose").rglob("*")
        if path.is_file()
    ]


def test_the_answers_of_a_stray_serve_where_the_recorded_batch_has_none(bench: Bench) -> None:
    bench.world.make_tickets(ROWS)
    frozen = frozen_before_its_creation(bench)
    bench.world.sleep(1000)  # the lease is over
    bench.world.simulator.turn(batch_seconds=3600)
    bench.fault(kind="errored", rows=[3, 7])
    waiting = bench.advance()
    assert isinstance(waiting, Pause)
    stray = frozen.thaw()
    finish(bench, *waiting.watch.batch_ids, stray)

    done = bench.complete()

    assert done.report.final == {Outcome.SUCCEEDED: ROWS}
    assert (done.report.attempts, done.report.batches) == ({1: ROWS}, 2)
    assert bench.world.charged() == 2 * ROWS - 2
    assert done.report.spent.cost == pytest.approx(billed(bench))
    ((useful,),) = bench.world.ask("SELECT sum(_llm_cost_usd) FROM labels")
    assert done.report.spent.stray_cost == pytest.approx(billed(bench) - useful)


def with_a_stray_of_a_landed_shard(bench: Bench) -> float:
    """All batches have ended, and one of them was sent when another of its shard had landed. Returns what it cost."""
    bench.world.make_tickets(ROWS)
    frozen = frozen_before_its_creation(bench, rows_per_batch=ROWS // 2)
    bench.world.sleep(1000)
    bench.world.simulator.turn(batch_seconds=3600)
    waiting = bench.advance()
    assert isinstance(waiting, Pause)
    first, second = waiting.watch.batch_ids
    finish(bench, first)
    bench.advance()
    before = billed(bench)
    finish(bench, frozen.thaw())
    cost = billed(bench) - before
    finish(bench, second)
    return cost


def test_a_stray_that_is_found_at_the_end_stands_in_the_report(bench: Bench) -> None:
    stray_cost = with_a_stray_of_a_landed_shard(bench)

    done = bench.complete()

    assert bench.world.charged() > ROWS
    assert done.report.spent.stray_cost == pytest.approx(stray_cost)
    assert done.report.spent.cost == pytest.approx(billed(bench))
    assert (done.report.batches, done.report.final) == (3, {Outcome.SUCCEEDED: ROWS})
    (shown,) = looked_at(bench).strays
    assert (shown.cost_usd, shown.in_report) == (pytest.approx(stray_cost), True)
    assert looked_at(bench).spent_usd == pytest.approx(billed(bench))


def test_it_is_counted_once_where_the_process_is_killed_between_the_sweep_and_the_report(
    bench: Bench,
) -> None:
    stray_cost = with_a_stray_of_a_landed_shard(bench)
    dying = _DiesBeforeItsReport(bench.world.workspace())
    with pytest.raises(_Freeze):
        bench.complete(bench.run(parts={"workspace": dying}))
    assert [stray.cost_usd for stray in looked_at(bench).strays] == [pytest.approx(stray_cost)]
    calls = bench.world.ledger()["calls"]["create"]

    done = bench.complete()

    assert done.report.spent.stray_cost == pytest.approx(stray_cost)
    assert done.report.spent.cost == pytest.approx(billed(bench))
    assert (done.report.batches, done.report.final) == (3, {Outcome.SUCCEEDED: ROWS})
    assert bench.world.ledger()["calls"]["create"] == calls
    assert bench.complete() == done
    (shown,) = looked_at(bench).strays
    assert shown.in_report


def test_what_a_stray_costs_that_is_found_after_the_report_is_recorded_and_said(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.world.make_tickets(ROWS)
    frozen = frozen_before_its_creation(bench)
    report = finished_by_another(bench)
    before = billed(bench)
    stray = frozen.thaw()
    finish(bench, stray)
    stray_cost = billed(bench) - before
    bench.said.clear()

    bench.complete("dag/task/next")

    assert bench.world.charged() == 2 * ROWS
    assert any(stray in said and f"has cost ${stray_cost:,.4f}" in said for said in bench.said)
    run = looked_at(bench)
    (shown,) = run.strays
    assert (shown.batch_id, shown.shard, shown.in_report) == (stray, 1, False)
    assert shown.cost_usd == pytest.approx(stray_cost)
    assert run.spent_usd == pytest.approx(billed(bench))
    command(str(bench.world.folder / "workspace" / "dag" / "task" / "run"))
    assert (
        f"batch {stray}, created by accident, ${stray_cost:,.4f}, which no report counts"
        in capsys.readouterr().out
    )
    assert bench.complete() == report  # the stored one does not change


@recognisable
def test_a_creation_after_the_end_buys_nothing_for_its_upload_is_gone(bench: Bench) -> None:
    bench.world.make_tickets(ROWS)
    frozen = frozen_before_its_creation(bench)
    finished_by_another(bench)

    with suppress(Refused):
        frozen.thaw(is_new=False)

    bench.complete("dag/task/next")
    assert (bench.world.charged(), bench.world.uploads(), bench.world.ledger()["running"]) == (ROWS, [], [])


@recognisable
def test_a_batch_that_shows_up_after_the_end_is_cancelled_by_the_next_run(bench: Bench) -> None:
    bench.world.make_tickets(ROWS)
    frozen = frozen_before_its_creation(bench)
    finished_by_another(bench)
    assert len(loose(bench)) == 1

    bench.world.simulator.turn(batch_seconds=3600)
    late = frozen.thaw()
    assert bench.world.ledger()["running"] == [in_the_ledger(late)]
    bench.said.clear()
    bench.complete("dag/task/next")
    bench.world.sleep(900)  # the provider takes its time to cancel

    assert bench.world.ledger()["running"] == []
    assert bench.world.charged() == ROWS
    assert any(late in said and "is cancelled" in said for said in bench.said)


@recognisable
def test_the_run_after_tells_what_one_has_cost_that_was_cancelled(bench: Bench) -> None:
    bench.world.make_tickets(ROWS)
    frozen = frozen_before_its_creation(bench)
    finished_by_another(bench)
    before = billed(bench)
    bench.world.simulator.turn(batch_seconds=3600, cancelled_share=0.5)
    frozen.thaw()
    bench.world.sleep(600)  # it runs
    bench.complete("dag/task/next")
    assert [stray.cost_usd for stray in looked_at(bench).strays] == [None]
    bench.world.sleep(900)

    bench.complete("dag/task/after_next")

    assert bench.world.charged() == 1.5 * ROWS
    assert [stray.cost_usd for stray in looked_at(bench).strays] == [pytest.approx(billed(bench) - before)]


def test_it_is_recorded_once_and_not_cancelled_again(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    frozen = frozen_before_its_creation(openai)
    finished_by_another(openai)
    late = frozen.thaw()
    finish(openai, late)
    openai.complete("dag/task/next")
    assert any(late in said for said in openai.said)
    openai.said.clear()

    openai.complete("dag/task/after_next")

    assert not any(late in said for said in openai.said)


def test_one_that_nobody_can_recognise_is_found_once_it_has_ended(anthropic: Bench) -> None:
    anthropic.world.make_tickets(ROWS)
    frozen = frozen_before_its_creation(anthropic)
    finished_by_another(anthropic)
    late = frozen.thaw()
    anthropic.world.simulator.finish(late)
    anthropic.said.clear()

    anthropic.complete("dag/task/next")

    assert any(late in said and "on the bill" in said for said in anthropic.said)


def test_a_search_that_fails_does_not_keep_the_next_run_from_its_work(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    frozen_before_its_creation(openai)
    finished_by_another(openai)
    openai.world.make_tickets(ROWS + 1)
    openai.fault(kind="status", status=400, endpoint="list", times=None)

    assert openai.complete("dag/task/next").report.passed
    assert len(loose(openai)) == 1


def test_after_twice_the_providers_window_it_is_no_longer_looked_for(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    frozen_before_its_creation(openai)
    finished_by_another(openai)
    openai.world.sleep(3 * 86_400)

    openai.complete("dag/task/next")

    assert loose(openai) == []


def test_a_run_without_an_accident_is_not_looked_for_by_the_next(bench: Bench) -> None:
    bench.world.make_tickets(ROWS)

    bench.complete()

    assert loose(bench) == []


def test_nor_after_that_time_where_every_search_fails(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    frozen_before_its_creation(openai)
    finished_by_another(openai)
    openai.world.sleep(3 * 86_400)
    openai.fault(kind="status", status=400, endpoint="list", times=None)

    openai.complete("dag/task/next")

    assert loose(openai) == []
