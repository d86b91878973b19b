"""The contract's cases about several processes on one database, and processes that are killed."""

import multiprocessing
from collections.abc import Iterator, Mapping
from importlib import import_module
from multiprocessing.synchronize import Event
from typing import Any

import pyarrow as pa
import pytest

from airflow_batch_llm.testing.staged_rows import BenchDatabase, at, batch, labels, land, part, rows_of, stage
from airflow_batch_llm.warehouses.base import Warehouse

Recipe = tuple[str, Mapping[str, Any]]

_ROWS = 20_000
_PROCESSES = multiprocessing.get_context("spawn")


class SharesWithProcesses:
    """The contract for concurrent writers, and for a writer that dies."""

    def test_publishes_of_several_processes_leave_each_key_once(self, database: BenchDatabase) -> None:
        _prepared(database)
        children = [
            _PROCESSES.Process(target=_land_all, args=(database.recipe, f"run-{n}", n)) for n in range(3)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 0, 0]
        found = [(row["id"], row["label"]) for row in rows_of(database, "labels")]
        assert sorted(found) == [(n, "run-2") for n in range(100)]

    def test_shards_staged_by_several_processes_land_together(self, database: BenchDatabase) -> None:
        target = labels()
        _prepared(database)
        children = [_PROCESSES.Process(target=_stage_one, args=(database.recipe, n)) for n in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        warehouse = database.open()
        warehouse.publish(target, [part(n) for n in range(3)])
        warehouse.close()
        assert sorted(row["id"] for row in rows_of(database, "labels")) == [0, 1, 2]

    def test_killed_in_mid_stage_and_staged_again_the_part_lands_once(self, database: BenchDatabase) -> None:
        target = labels()
        _prepared(database)
        ready = _PROCESSES.Event()
        child = _PROCESSES.Process(target=_stage_and_stall, args=(database.recipe, ready))
        child.start()
        assert ready.wait(60)
        child.kill()
        child.join()
        warehouse = database.open()
        land(warehouse, target, part(), [{"id": 1, "label": "whole"}])
        warehouse.close()
        assert [(row["id"], row["label"]) for row in rows_of(database, "labels")] == [(1, "whole")]
        assert database.tables() == {target.table, target.failures}

    @pytest.mark.parametrize("seconds", [0.0, 0.05, 0.2])
    def test_killed_in_mid_publish_all_rows_are_in_or_none_and_again_lands_them_once(
        self, database: BenchDatabase, seconds: float
    ) -> None:
        target = labels()
        _prepared(database)
        ready = _PROCESSES.Event()
        child = _PROCESSES.Process(target=_stage_and_publish, args=(database.recipe, ready))
        child.start()
        assert ready.wait(60)
        child.join(seconds)
        child.kill()
        child.join()
        assert len(rows_of(database, target.table)) in (0, _ROWS)
        warehouse = database.open()
        warehouse.publish(target, [part()])
        warehouse.close()
        assert len(rows_of(database, target.table)) == _ROWS


def _prepared(database: BenchDatabase) -> None:
    warehouse = database.open()
    warehouse.prepare(labels())
    warehouse.close()


def _opened(recipe: Recipe) -> Warehouse:
    module, function = recipe[0].split(":")
    warehouse: Warehouse = getattr(import_module(module), function)(**recipe[1])
    return warehouse


def _land_all(recipe: Recipe, run: str, planned: int) -> None:
    warehouse = _opened(recipe)
    ids = range(100) if planned % 2 else reversed(range(100))
    rows = [{"id": n, "label": run, "_llm_planned_at": at(planned)} for n in ids]
    for shard in range(5):
        land(warehouse, labels(), part(shard, run=run), rows[shard * 20 : shard * 20 + 20])
    warehouse.close()


def _stage_one(recipe: Recipe, shard: int) -> None:
    warehouse = _opened(recipe)
    stage(warehouse, labels(), part(shard), [{"id": shard, "label": "x"}])
    warehouse.close()


def _stage_and_stall(recipe: Recipe, ready: Event) -> None:
    target = labels()

    def rows() -> Iterator[pa.RecordBatch]:
        yield batch(target.answer_columns, [{"id": n, "label": "half"} for n in range(1000)])
        ready.set()
        _PROCESSES.Event().wait()

    none = pa.RecordBatchReader.from_batches(target.failure_columns, [])
    answers = pa.RecordBatchReader.from_batches(target.answer_columns, rows())
    _opened(recipe).load(target, part(), answers, none)


def _stage_and_publish(recipe: Recipe, ready: Event) -> None:
    warehouse = _opened(recipe)
    stage(warehouse, labels(), part(), ({"id": n, "label": "x"} for n in range(_ROWS)))
    ready.set()
    warehouse.publish(labels(), [part()])
