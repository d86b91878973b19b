"""Count what a run costs in operations on its folder, and what one worker learns from another."""

import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from airflow_batch_llm.core.journal import Entry, RecordKind
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.standings import RunMemory, read_standings
from airflow_batch_llm.store import Workspace
from tests.benchmarks.store_operations import count, counted_bench
from tests.stage.world import Bench, let_go


def test_each_shard_costs_the_same_however_many_there_are(openai: Bench, tmp_path: Path) -> None:
    """Four shards at a time: a look that read all journals would make the larger run dearer."""
    openai.world.simulator.turn(batch_seconds=1200)
    totals: dict[int, int] = {}
    looks: dict[int, int] = {}
    for shards in (8, 32):
        folder = tmp_path / str(shards)
        folder.mkdir()
        with counted_bench(openai.world.simulator, folder, shards) as (bench, counted):
            looks[shards] = count(bench, counted, places=4).looks
            totals[shards] = counted.total()
            assert (
                counted.total(kind="results") == shards
            )  # the worker that has kept them does not fetch them

    a_look = 18
    more = totals[32] - totals[8] - a_look * (looks[32] - looks[8])
    assert more <= 13 * (32 - 8), (totals, looks)
    assert totals[8] <= 12 * 8 + a_look * looks[8] + 20, (totals, looks)


def test_a_run_that_an_earlier_release_has_planned_goes_on(openai: Bench) -> None:
    openai.world.simulator.turn(batch_seconds=600)
    openai.world.make_tickets(6)
    run = openai.run(rows_per_batch=2)
    run.generation()
    let_go(run)
    path = openai.world.folder / "workspace/dag/task/run/g1/plan.json"
    fields = orjson.loads(path.read_bytes())
    assert fields.pop("lists_shards")
    path.write_bytes(orjson.dumps(fields))

    finished = openai.complete(rows_per_batch=2)

    assert finished.report.final == {Outcome.SUCCEEDED: 6}
    assert openai.world.charged() == 6
    assert not (path.parent / "looks").exists()


@pytest.fixture
def folder(openai: Bench) -> RunFolder:
    """A finished run of two shards, each look of which has been recorded."""
    openai.world.simulator.turn(batch_seconds=600)
    openai.world.make_tickets(4)
    openai.complete(rows_per_batch=2)
    return RunFolder(workspace=openai.world.workspace(), run="dag/task/run")


def _plan(folder: RunFolder) -> Plan:
    return Plan.from_json(folder.read_plan() or b"")


def _entry(kind: RecordKind, batch_id: str = "") -> Entry:
    return Entry(kind=kind, nonce=secrets.token_hex(6), at=1.0, batch_id=batch_id)


def test_what_is_added_to_the_journal_of_a_staged_shard_is_seen_by_all(folder: RunFolder) -> None:
    plan = _plan(folder)
    first = RunMemory.of(folder, plan)
    first.fresh_standings(plan)
    first.leave()
    settled = RunMemory.of(folder, plan)
    late = RunMemory.of(folder, plan)
    last = late.standing(1).last

    assert late.append(1, last + 1, _entry(RecordKind.SUBMITTED, "stray"))

    assert RunMemory.of(folder, plan).standing(1).spare == ("stray",)
    assert read_standings(folder, plan)[0][1].spare == ("stray",)
    # A worker that knows the older journal cannot overwrite the record, and reads it.
    assert not settled.append(1, last + 1, _entry(RecordKind.SUBMITTED, "other"))
    assert settled.standing(1).spare == ("stray",)


def test_two_workers_list_what_they_learned_at_once(folder: RunFolder) -> None:
    plan = replace(_plan(folder), lists_shards=True)
    one, other = RunMemory.of(folder, plan), RunMemory.of(folder, plan)

    one.begin([7])
    other.begin([8, 9])
    assert one.append(7, 1, _entry(RecordKind.INTENT))
    assert other.append(9, 1, _entry(RecordKind.INTENT))
    one.leave()
    other.leave()

    third = RunMemory.of(folder, plan)
    assert [len(third.entries(number)) for number in (7, 8, 9, 10)] == [1, 0, 1, 0]


@dataclass(slots=True)
class _Interrupting:
    """A storage in which another worker records a spare batch just before a shard is recorded as staged."""

    storage: Any
    done: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def create(self, path: str, data: bytes) -> bool:
        if not self.done and b'"staged"' in data and "/journal/0001/" in path:
            self.done.append(path)
            assert self.storage.create(path, _entry(RecordKind.SUBMITTED, "batch_of_another").to_json())
        return bool(self.storage.create(path, data))


def test_a_shard_is_staged_although_another_worker_has_recorded_something_meanwhile(openai: Bench) -> None:
    openai.world.make_tickets(4)
    workspace = openai.world.workspace()
    storage = _Interrupting(workspace._storage)
    openai.workspace = Workspace(workspace.uri, storage)

    finished = openai.complete(rows_per_batch=2)

    assert isinstance(finished, Finished)
    assert storage.done
    assert len(openai.world.answers()) == 4
    assert finished.report.final == {Outcome.SUCCEEDED: 4}
