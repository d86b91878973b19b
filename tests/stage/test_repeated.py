"""Runs behind a gateway that carries the creation of a batch out twice: cancelled, counted and told of."""

from collections.abc import Sequence
from typing import Any

import pytest

from airflow_batch_llm.core.model import Outcome, Search, Sighting
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.run import Run
from airflow_batch_llm.store import Workspace
from tests.stage.world import Bench, let_go

ROWS = 300
ALL, THIRD = 400, 110  # rows per batch, of which a few less are taken

#: Dollars per million tokens: a thousandth for each token of a batch.
DEAR = {"input": 2000.0, "output": 2000.0}

#: The share of a stray's rows that were executed before it was cancelled.
SHARE = 0.25


class _Killed(BaseException):
    """Ends the process here, as a kill does."""


class _DiesWhenItCancels:
    """A provider of a process that is killed when it is about to cancel."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    def cancel(self, batch_id: str) -> None:
        raise _Killed(batch_id)


class _DiesWhenItCounts:
    """A workspace of a process that is killed when it is about to record what a stray has cost."""

    def __init__(self, workspace: Any) -> None:
        self._workspace = workspace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workspace, name)

    def create(self, path: str, data: bytes) -> bool:
        if "/strays/" in path:
            raise _Killed(path)
        return self._workspace.create(path, data)  # type: ignore[no-any-return]


class _Counted:
    """A provider that counts its searches."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self.searches = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    def find(self, search: Search) -> Sequence[Sighting]:
        self.searches += 1
        return self._provider.find(search)  # type: ignore[no-any-return]


def recognises(bench: Bench) -> bool:
    """Return whether the provider shows whose a batch is while it runs."""
    return bench.world.provider_name != "anthropic"


def repeating(bench: Bench) -> None:
    """A gateway repeats each creation."""
    bench.world.make_tickets(ROWS)
    bench.world.simulator.turn(batch_seconds=3600, cancelled_share=SHARE)
    bench.fault(kind="repeat", endpoint="create", times=None)


def a_run(bench: Bench, warned: list[str], rows_per_batch: int, **parts: Any) -> Run:
    prices = {bench.world.model: DEAR}
    return bench.run(
        parts={"log_warning": warned.append, **parts}, rows_per_batch=rows_per_batch, prices=prices
    )


def billed(bench: Bench) -> float:
    """Return the cost of all batches together."""
    tokens = bench.world.ledger()["tokens"]
    return float(tokens["input"] + tokens["output"]) / 1000


def judge(bench: Bench, done: Finished, warned: list[str], *, batches: int, charged: float) -> None:
    """Each row is answered once, each dollar counted, and the second batches are told of once.

    `charged` is the share of the second batches' rows that were executed.
    """
    assert done.report.final == {Outcome.SUCCEEDED: ROWS}
    assert len(bench.world.answers()) == ROWS
    ((useful,),) = bench.world.ask("SELECT sum(_llm_cost_usd) FROM labels")
    assert done.report.spent.cost == pytest.approx(billed(bench))
    assert done.report.spent.stray_cost == pytest.approx(billed(bench) - useful)
    assert done.report.batches == 2 * batches
    (told,) = (message for message in warned if "repeats a POST" in message)
    noun = "1 batch" if batches == 1 else f"{batches} batches"
    assert told.startswith(f"{noun} with {ROWS} requests")
    assert f"for ${done.report.spent.stray_cost:,.4f}" in told
    assert bench.world.charged() == ROWS * (1 + charged)
    assert len(bench.batches()) == 2 * batches
    assert bench.world.ledger()["running"] == []


@pytest.mark.parametrize(("rows_per_batch", "batches"), [(ALL, 1), (THIRD, 3)])
def test_what_was_created_twice_is_cancelled_counted_and_told_of(
    bench: Bench, rows_per_batch: int, batches: int
) -> None:
    repeating(bench)
    warned: list[str] = []

    done = bench.complete(a_run(bench, warned, rows_per_batch))

    judge(bench, done, warned, batches=batches, charged=0 if recognises(bench) else 1)


def test_so_it_is_where_the_process_is_killed_between_finding_and_cancelling(bench: Bench) -> None:
    repeating(bench)
    warned: list[str] = []
    dying = a_run(bench, warned, ALL, workspace=_DiesWhenItCounts(bench.world.workspace()))
    if recognises(bench):
        dying = a_run(bench, warned, ALL, provider=_DiesWhenItCancels(bench.world.provider()))
    with pytest.raises(_Killed):
        bench.complete(dying)
    bench.world.sleep(600)  # what runs, works

    done = bench.complete(a_run(bench, warned, ALL))

    judge(bench, done, warned, batches=1, charged=SHARE if recognises(bench) else 1)


def test_the_batches_of_others_on_the_account_are_left_alone(bench: Bench) -> None:
    repeating(bench)
    bench.world.simulator.clear_faults()
    bench.fault(kind="hold")
    elsewhere = Workspace.open(str(bench.world.folder / "elsewhere"))
    bench.advance(bench.run("dag/task/other", parts={"workspace": elsewhere}, target="others"))
    (other,) = bench.batches()
    bench.fault(kind="repeat", endpoint="create", times=None)

    done = bench.complete()

    assert done.report.final == {Outcome.SUCCEEDED: ROWS}
    assert bench.world.ledger()["running"] == [other]
    assert bench.world.simulator.batch(other)["phase"] == "running"


def test_a_run_in_which_nothing_was_created_twice_searches_once(bench: Bench) -> None:
    bench.world.make_tickets(ROWS)
    bench.fault(kind="errored", every=9, times=3)  # so there is a second round
    warned: list[str] = []
    run = a_run(bench, warned, THIRD)
    counted = _Counted(run.parts.provider)

    done = bench.complete(a_run(bench, warned, THIRD, provider=counted))
    let_go(run)

    assert len(done.report.attempts) == 2
    assert counted.searches == 1
    assert warned == []


def test_such_a_search_is_one_call_and_reads_nothing(anthropic: Bench) -> None:
    anthropic.world.make_tickets(ROWS)

    anthropic.complete()

    calls = anthropic.world.ledger()["calls"]
    assert (calls["list"], calls["results"]) == (1, 1)
