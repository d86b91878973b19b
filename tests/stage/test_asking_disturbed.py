"""Workers that ask in real time and are frozen, ended, or given answers that nobody can read."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.errors import Refused, StoreUnavailable
from airflow_batch_llm.providers.incoming import joined_lines, split_lines
from airflow_batch_llm.stage.audit import audit
from airflow_batch_llm.stage.drive import complete
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.run import Pause, Run
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.store.storage import LocalDisk
from tests.stage.asking_matrix import CHANGES, ROWS, frozen, judge, moments, paid
from tests.stage.processes import Job
from tests.stage.test_erasing import erase, land
from tests.stage.test_spread import spread
from tests.stage.world import Bench


@pytest.mark.parametrize("until", [40, ROWS - 1])
def test_a_worker_that_is_frozen_beyond_its_lease_asks_nothing_more_and_harms_nothing(
    bench: Bench, until: int
) -> None:
    judge(frozen(bench, until))
    folder = RunFolder(workspace=bench.world.workspace(), run="dag/task/run")
    assert len(folder.answer_files()) == 1  # it left nothing behind


def test_a_worker_that_is_ended_keeps_its_answers_and_gives_the_lease_back(anthropic: Bench) -> None:
    bench = anthropic
    bench.world.make_tickets(ROWS)
    bench.fault(kind="delay", endpoint="messages", seconds=0.2, times=None)
    first = Job(world=bench.world, changes=CHANGES, part=_until_ended).started()
    for _ in moments(60):
        if paid(bench) >= 40:
            break
    assert first.process.pid is not None
    os.kill(first.process.pid, signal.SIGTERM)
    first.process.join()
    bought = paid(bench)
    assert bought < ROWS
    bench.world.simulator.clear_faults()
    done = bench.advance(**CHANGES)  # at once: nobody holds the lease
    assert not isinstance(done, Pause)
    assert (done.report.final, done.report.maybe_twice) == ({Outcome.SUCCEEDED: ROWS}, 0)
    assert paid(bench) == ROWS


def _until_ended(run: Run) -> None:
    def end(*_: object) -> None:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, end)
    complete(run, sleep=run.parts.sleep)


def test_an_answer_that_nobody_can_read_is_bought_once(bench: Bench) -> None:
    """It is kept like any other, so an attempt that goes on does not stumble over it."""
    bench.world.make_tickets(40)
    endpoint = {"anthropic": "messages", "openai": "chat", "vertex": "generate"}[bench.world.provider_name]
    bench.fault(kind="body", endpoint=endpoint, effect="after", text='{"odd": [1]}', nth=3, times=1)
    bench.fault(kind="status", endpoint=endpoint, status=403, nth=30, times=None)
    with pytest.raises(Refused):
        bench.complete(way="now", max_attempts=1)
    bench.world.simulator.clear_faults()
    report = bench.complete(way="now", max_attempts=1, min_success_ratio=0).report
    assert report.final[Outcome.SUCCEEDED] == 39
    assert (sum(report.final.values()), paid(bench)) == (40, 40)


class FailingOnce(LocalDisk):
    """A disk that refuses the third file of answers, once."""

    segments = 3

    def write(self, path: str, blocks: Any, aside: Path, *, keep: bool = False) -> bool:
        self.segments -= "/asked/" in path
        if not self.segments:
            self.segments = -1
            raise StoreUnavailable("The disk is full.")
        return super().write(path, blocks, aside, keep=keep)


def test_a_store_that_fails_once_loses_no_answer(anthropic: Bench) -> None:
    bench = anthropic
    bench.world.make_tickets(ROWS)
    bench.fault(kind="delay", endpoint="messages", seconds=0.2, times=None)
    root = bench.world.folder / "workspace"
    root.mkdir(exist_ok=True)
    failing = Workspace(str(root), FailingOnce(root, make_root=False))
    with pytest.raises(StoreUnavailable):
        bench.complete(bench.run(parts={"workspace": failing}, **CHANGES))
    bought = paid(bench)
    assert bought < ROWS
    bench.world.simulator.clear_faults()
    report = bench.complete(**CHANGES).report
    assert (report.final, report.maybe_twice, paid(bench)) == ({Outcome.SUCCEEDED: ROWS}, 0, ROWS)


def test_what_a_frozen_worker_left_is_erased_and_the_audit_names_who_asked(anthropic: Bench) -> None:
    """The segment came after the run had made its results."""
    bench = anthropic
    bench.world.make_tickets(30)
    bench.complete(**CHANGES)
    folder = RunFolder(workspace=bench.world.workspace(), run="dag/task/run")
    (name,) = folder.answer_files()
    late = list(split_lines(folder.answers_in(name) or ()))
    folder.write_segment(1, "late", joined_lines(late), bench.world.folder / "aside")
    (erased,) = erase(bench, "7")
    assert erased.answers == 2
    assert [len(list(split_lines(folder.answers_in(name) or ()))) for name in folder.answer_files()] == [
        29,
        29,
    ]
    assert erase(bench, "7") == []
    (asked,) = audit(folder).batches
    assert (asked.batch_id, asked.requests) == (name.removeprefix("results/").removesuffix(".jsonl"), 30)
    land(bench)
    assert len(bench.world.answers()) == 29


def test_a_row_that_failed_is_asked_in_a_further_round(anthropic: Bench) -> None:
    bench = anthropic
    bench.world.make_tickets(40)
    bench.fault(kind="body", endpoint="messages", effect="after", text='{"odd": [1]}', nth=3, times=1)
    report = bench.complete(**CHANGES).report
    assert (report.final, report.rounds, paid(bench)) == ({Outcome.SUCCEEDED: 40}, 2, 41)


def test_the_workers_of_a_group_ask_each_its_own_shards(anthropic: Bench) -> None:
    bench = anthropic
    bench.world.make_tickets(70)
    whole = spread(bench, way="now")
    bought = []
    for portion in whole.portions(2):
        whole.submit(portion)
        bought.append(paid(bench))
    assert 0 < bought[0] < bought[1] == 70
    assert whole.drive() is None
    for portion in whole.portions(2):
        whole.collect(portion)
    report = bench.complete(way="now", rows_per_batch=10).report
    assert (report.final, report.maybe_twice, paid(bench)) == ({Outcome.SUCCEEDED: 70}, 0, 70)


def test_a_run_whose_task_was_ended_asks_nothing_more_and_what_was_answered_lands_with_the_next(
    anthropic: Bench,
) -> None:
    bench = anthropic
    bench.world.make_tickets(ROWS)
    bench.fault(kind="delay", endpoint="messages", seconds=0.2, times=None)
    first = Job(world=bench.world, changes=CHANGES, part=_until_ended).started()
    for _ in moments(60):
        if paid(bench) >= 40:
            break
    assert first.process.pid is not None
    os.kill(first.process.pid, signal.SIGTERM)
    first.process.join()
    bought = paid(bench)
    bench.world.simulator.clear_faults()
    following = replace(bench.run("dag/task/next", **CHANGES), is_given_up=lambda *_: True)
    report = bench.complete(following).report
    assert (report.final, paid(bench)) == ({Outcome.SUCCEEDED: ROWS - bought}, ROWS)
    assert len(bench.world.answers()) == ROWS
    assert any("asked no more in real time" in line for line in bench.said)
