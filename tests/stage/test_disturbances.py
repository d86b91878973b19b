"""Disturbances between a stage and its provider, and between two attempts at one run."""

import resource
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from airflow_batch_llm.core.model import Lease, Outcome, ShardFile
from airflow_batch_llm.core.settings import Only, WriteMode
from airflow_batch_llm.errors import BatchLLMError, StoreError
from airflow_batch_llm.stage.land.finishing import Finished
from tests.stage.kills import Kill
from tests.stage.processes import Job
from tests.stage.world import Bench, World, let_go

EFFECTS = [
    {"kind": "drop", "effect": "after"},
    {"kind": "drop", "effect": "before"},
    {"kind": "status", "status": 500, "effect": "after"},
    {"kind": "status", "status": 503, "effect": "after"},
    {"kind": "status", "status": 503, "effect": "before"},
    {"kind": "status", "status": 429, "effect": "before", "retry_after": 5.0},
    {"kind": "cut", "bytes": 20},
    {"kind": "body", "text": "<html>Sign in</html>", "content_type": "text/html", "effect": "after"},
    {"kind": "body", "text": "{}", "effect": "before"},
]


def paid_once(bench: Bench, rows: int) -> None:
    ledger = bench.world.ledger()
    assert (ledger["rows"]["charged"], ledger["running"]) == (rows, [])
    assert ledger["duplicates"]["surplus_charges"] == 0
    assert sorted(bench.world.answers()) == list(range(rows))
    assert bench.world.failures() == {}
    assert bench.world.unfinished() == []


@pytest.mark.parametrize("fault", EFFECTS, ids=lambda fault: "-".join(map(str, fault.values())))
def test_a_creation_whose_answer_is_lost_is_looked_up_and_not_repeated(
    bench: Bench, fault: Mapping[str, Any]
) -> None:
    bench.world.make_tickets(25)
    bench.fault(endpoint="create", nth=2, **fault)

    bench.complete(rows_per_batch=10)

    paid_once(bench, 25)
    assert len(bench.batches()) == 3


def test_a_search_that_fails_is_not_taken_for_an_empty_one(bench: Bench) -> None:
    bench.world.make_tickets(25)
    bench.fault(kind="drop", endpoint="create", effect="after")
    bench.fault(kind="status", status=503, endpoint="list", retry_after=0.1, times=4)

    for _ in range(8):
        try:
            bench.complete(rows_per_batch=10)
        except BatchLLMError as error:  # as Airflow does: what may succeed later is tried again
            if not error.retryable:
                raise
        else:
            break

    paid_once(bench, 25)


def test_a_new_batch_that_the_lists_do_not_show_yet_is_not_bought_again(bench: Bench) -> None:
    bench.world.make_tickets(25)
    bench.world.simulator.turn(list_lag=50.0)
    bench.fault(kind="drop", endpoint="create", effect="after")

    bench.complete(rows_per_batch=10)

    paid_once(bench, 25)


def test_a_process_killed_between_the_creation_and_its_record_leaves_a_batch_that_is_adopted(
    bench: Bench,
) -> None:
    bench.world.make_tickets(20)
    verbs = Job(world=bench.world, name="look", changes={"target": "elsewhere"}).run().verbs
    bench.world.simulator.reset()
    point = verbs.index("provider.submit") + 1

    assert Job(world=bench.world, kill=Kill(point, after=True)).run().killed
    assert len(bench.batches()) == 1
    bench.complete()

    paid_once(bench, 20)
    assert len(bench.batches()) == 1


@pytest.mark.parametrize("together", [2, 3])
def test_attempts_that_are_alive_at_the_same_time_buy_each_row_once(bench: Bench, together: int) -> None:
    """From the first moment on: they plan at once, too."""
    bench.world.make_tickets(40)
    bench.fault(kind="errored", every=9, times=4)

    started = [
        Job(world=bench.world, changes={"rows_per_batch": 10}, evenly=True).started() for _ in range(together)
    ]
    ended = [one.wait() for one in started]

    assert [one.error for one in ended] == [""] * together
    assert all(one.report == ended[0].report for one in ended)
    assert len(bench.batches()) == 5
    paid_once(bench, 40)


def test_two_attempts_at_a_planned_run_share_its_batches(bench: Bench) -> None:
    bench.world.make_tickets(40)
    bench.world.simulator.turn(batch_seconds=60)
    bench.advance(rows_per_batch=10, max_active_batches=1)

    changes = {"rows_per_batch": 10, "max_active_batches": 2}
    started = [Job(world=bench.world, changes=changes, evenly=True).started() for _ in range(2)]
    ended = [one.wait() for one in started]

    assert [one.error for one in ended] == [""] * 2
    assert len(bench.batches()) == 4
    paid_once(bench, 40)


@pytest.mark.parametrize("changes", [{"only": Only.ALL}, {"write_mode": WriteMode.APPEND}], ids=str)
def test_a_process_killed_after_its_last_merge_leaves_nothing_to_be_sent_again(
    openai: Bench, changes: Mapping[str, Any]
) -> None:
    def begin() -> None:
        openai.world.begin()
        openai.world.ask("DROP TABLE IF EXISTS labels")
        rmtree(openai.world.folder / "workspace", ignore_errors=True)
        openai.world.make_tickets(20)

    begin()
    verbs = Job(world=openai.world, changes=changes).run().verbs
    merged = len(verbs) - verbs[::-1].index("warehouse.publish")
    for point in range(merged, len(verbs) + 1):
        begin()
        assert Job(world=openai.world, changes=changes, kill=Kill(point, after=True)).run().killed

        openai.complete(**changes)

        assert openai.world.charged() == 20, verbs[point - 1]
        assert openai.world.ask("SELECT count(*), count(DISTINCT id) FROM labels") == [(20, 20)]


class _Frozen:
    """A provider that sleeps between its last look and its creation, for longer than its lease, and a while after it."""

    def __init__(
        self, bench: Bench, provider: Any, seconds: float, meanwhile: Callable[[], object], then: float
    ) -> None:
        self._bench, self._provider, self._seconds, self._then = bench, provider, seconds, then
        self._meanwhile: Callable[[], object] | None = meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    def submit(self, shard: ShardFile, upload: str, lease: Lease) -> str:
        if self._meanwhile is not None:
            meanwhile, self._meanwhile = self._meanwhile, None
            self._bench.world.sleep(self._seconds)
            meanwhile()
            # The machine's check came before it froze.
            lease = Lease(expires_at=self._bench.world.clock() + 60)
            batch_id: str = self._provider.submit(shard, upload, lease)
            self._bench.world.sleep(self._then)
            return batch_id
        return self._provider.submit(shard, upload, lease)  # type: ignore[no-any-return]


class _Death(BaseException):
    """Ends the process here, as a kill does."""


class _DiesBeforeItCancels(_Frozen):
    """It has recorded its batch beside another's, and then it is killed."""

    def cancel(self, batch_id: str) -> None:
        raise _Death


def frozen_and_cancelled(bench: Bench, *, ran_seconds: float, cancelled_share: float) -> Finished:
    """A run of which an attempt slept beyond its lease, sent, ran on, saw another's batch and cancelled its own."""
    bench.world.make_tickets(20)
    bench.world.simulator.turn(batch_seconds=1000, cancelled_share=cancelled_share)
    run = bench.run()
    frozen = _Frozen(bench, run.parts.provider, 1000.0, bench.advance, ran_seconds)
    done = bench.complete(bench.run(parts={"provider": frozen}))
    let_go(run)
    return done


def test_a_batch_from_a_process_that_froze_beyond_its_lease_is_cancelled(bench: Bench) -> None:
    done = frozen_and_cancelled(bench, ran_seconds=0.0, cancelled_share=0.0)

    assert len(bench.batches()) == 2
    paid_once(bench, 20)
    assert (done.report.final, done.report.spent.stray_cost) == ({Outcome.SUCCEEDED: 20}, 0.0)


def test_what_such_a_batch_did_until_it_was_cancelled_stands_in_the_report(bench: Bench) -> None:
    done = frozen_and_cancelled(bench, ran_seconds=300.0, cancelled_share=0.5)

    ledger = bench.world.ledger()
    assert (ledger["rows"]["charged"], ledger["running"]) == (30, [])
    assert (done.report.final, done.report.batches) == ({Outcome.SUCCEEDED: 20}, 2)
    assert sorted(bench.world.answers()) == list(range(20))
    ((useful,),) = bench.world.ask("SELECT sum(_llm_cost_usd) FROM labels")
    assert done.report.spent.stray_cost > 0.3 * useful
    assert done.report.spent.cost == pytest.approx(useful + done.report.spent.stray_cost)


def test_a_stray_whose_process_died_before_it_could_cancel_it_is_cancelled_by_another(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.world.simulator.turn(batch_seconds=600)
    run = bench.run()

    def another() -> None:
        bench.advance()
        bench.world.simulator.turn(batch_seconds=80_000)  # the stray would run for a day

    dying = _DiesBeforeItCancels(bench, run.parts.provider, 1000.0, another, 0.0)
    with pytest.raises(_Death):
        bench.run(parts={"provider": dying}).advance()
    let_go(run)
    assert len(bench.world.ledger()["running"]) == 2

    assert bench.complete().report.passed

    bench.world.sleep(30_000)  # the provider takes its time to cancel
    assert (bench.world.ledger()["running"], bench.world.charged()) == ([], 20)


def small_disk(world: World) -> Mapping[str, Any]:
    """Limit the size of this process's files. A larger write raises an error instead of killing."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    return {}


def test_a_disk_that_is_full_while_a_run_is_planned_costs_nothing(bench: Bench) -> None:
    bench.world.make_tickets(2000)

    stopped = Job(world=bench.world, hook=small_disk).run()

    assert "File too large" in stopped.error
    assert bench.batches() == []
    bench.complete()
    paid_once(bench, 2000)


def test_a_disk_that_is_full_stops_a_run_that_goes_on_later(bench: Bench) -> None:
    bench.world.make_tickets(2000)
    bench.world.simulator.turn(batch_seconds=600)
    bench.advance()

    stopped = Job(world=bench.world, hook=small_disk).run()

    assert "File too large" in stopped.error
    bench.complete()
    paid_once(bench, 2000)


def test_a_worker_that_cannot_see_the_run_folder_is_told_so(openai: Bench, tmp_path: Path) -> None:
    openai.world.make_tickets(20)
    openai.world.simulator.turn(batch_seconds=600)
    openai.advance()
    for keys in (openai.world.folder / "workspace").rglob("*.keys.parquet"):
        keys.unlink()

    with pytest.raises(StoreError, match="gone from the run folder"):
        openai.complete()
    assert len(openai.batches()) == 1
