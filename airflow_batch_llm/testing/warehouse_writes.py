"""The contract's cases about staging and merging: by one process, by several, and by processes that are killed."""

import multiprocessing
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from importlib import import_module
from multiprocessing.synchronize import Event
from typing import Any

import orjson
import pyarrow as pa
import pytest

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.settings import WriteMode
from airflow_batch_llm.errors import WarehouseError
from airflow_batch_llm.testing.staged_rows import (
    BenchDatabase,
    at,
    batch,
    columns,
    labels,
    land,
    part,
    rows_of,
    stage,
)
from airflow_batch_llm.testing.warehouse_reads import TYPED
from airflow_batch_llm.warehouses.base import SweepsStaging, Target, Warehouse

#: One answer column of each type, and values that tell.
ANSWERS: dict[ColumnType, list[Any]] = {
    ColumnType.STRING: ["billing", ""],
    ColumnType.INTEGER: [2**53 + 1, -(2**63)],
    ColumnType.NUMBER: [0.1, -1e300],
    ColumnType.DECIMAL: [Decimal("12345678901234567890123456789.123456789"), Decimal("-0.1")],
    ColumnType.BOOLEAN: [True, False],
    ColumnType.TIMESTAMP: [datetime(2026, 3, 1, 12, 30, 0, 5, tzinfo=UTC), datetime(1969, 1, 1, tzinfo=UTC)],
    ColumnType.DATE: [date(2026, 3, 1), date(1900, 1, 1)],
    ColumnType.JSON: ['{"a":[1,2.5,null],"b":"ü"}', "[]"],
    ColumnType.VECTOR: [[0.25, -1.0, 3.0], []],
}


def told(database: BenchDatabase, target: Target, column: str = "label") -> list[tuple[Any, ...]]:
    """Return each row's key columns and one answer column."""
    return [
        (*(row[name] for name in target.key.names), row[column]) for row in rows_of(database, target.table)
    ]


class MergesAnswers:
    """The contract of `load`, `publish` and `drop_loaded`: what they leave in the two tables."""

    def test_every_type_of_answer_lands_as_it_was(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels(answer=columns(**{type_.value: type_ for type_ in ANSWERS}))
        warehouse.prepare(target)
        rows = [
            {"id": n, **{type_.value: values[n] for type_, values in ANSWERS.items()}} for n in range(2)
        ] + [{"id": 2}]
        land(warehouse, target, part(), rows)
        for row, found in zip(rows, rows_of(database, target.table), strict=True):
            for type_ in ANSWERS:
                value, there = row.get(type_.value), found[type_.value]
                if type_ in (ColumnType.JSON, ColumnType.VECTOR):
                    value, there = _parsed(value), _parsed(there)
                if type_ is ColumnType.DECIMAL and isinstance(there, str):
                    there = Decimal(there)  # a database whose numbers have few digits keeps it as text
                assert there == value, type_

    def test_keys_and_carried_columns_land_as_they_were(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        every = pa.schema([(name, type_) for name, (type_, _) in TYPED.items()])
        key = pa.schema([field for field in every if field.name not in ("a_double", "a_blob")])
        carried = pa.schema([(f"c_{field.name}", field.type) for field in every])
        target = labels(key=key, carried=carried)
        warehouse.prepare(target)
        values = {name: value for name, (_, value) in TYPED.items()}
        row = {name: values[name] for name in key.names} | {
            f"c_{name}": value for name, value in values.items()
        }
        for label in ("billing", "sales"):
            land(warehouse, target, part(), [{**row, "label": label}])
        found = rows_of(database, target.table)
        assert [{name: there[name] for name in [*row, "label"]} for there in found] == [
            {**row, "label": "sales"}
        ]

    def test_a_key_of_several_columns_is_one_key(self, database: BenchDatabase, warehouse: Warehouse) -> None:
        target = labels(key=pa.schema([("region", pa.string()), ("id", pa.int64())]))
        warehouse.prepare(target)
        land(
            warehouse,
            target,
            part(),
            [{"region": r, "id": i, "label": f"{r}{i}"} for r in "ab" for i in (1, 2)],
        )
        land(
            warehouse, target, part(1), [{"region": "b", "id": 1, "label": "new"}], [{"region": "b", "id": 3}]
        )
        assert told(database, target) == [("a", 1, "a1"), ("a", 2, "a2"), ("b", 1, "new"), ("b", 2, "b2")]

    def test_keys_that_differ_by_case_or_blanks_are_different(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels(key=pa.schema([("id", pa.string())]))
        warehouse.prepare(target)
        for _ in range(2):
            land(warehouse, target, part(), [{"id": key, "label": key} for key in ("a", "A", "a ", "á", "")])
        assert sorted(told(database, target)) == sorted((key, key) for key in ("a", "A", "a ", "á", ""))

    def test_what_a_killed_worker_staged_is_swept_once_it_is_old(self, warehouse: Warehouse) -> None:
        if not isinstance(warehouse, SweepsStaging):
            pytest.skip("what is staged expires by itself, or nothing is swept")
        target, live = labels(), part(run="live")
        warehouse.prepare(target)
        stage(warehouse, target, part(), [{"id": 1}])
        stage(warehouse, labels(table="other"), part(3), [], [{"id": 2}])
        assert warehouse.sweep(target, before=at(0)) == 0

        assert warehouse.sweep(target, before=datetime.now(UTC) + timedelta(hours=1)) == 4

        with pytest.raises(WarehouseError):
            warehouse.publish(target, [part()])
        stage(warehouse, target, live, [{"id": 1}])
        warehouse.publish(target, [live])

    @pytest.mark.parametrize("mode", list(WriteMode))
    def test_staging_and_publishing_again_leave_the_same_tables(
        self, database: BenchDatabase, warehouse: Warehouse, mode: WriteMode
    ) -> None:
        target = labels(write_mode=mode)
        warehouse.prepare(target)
        for _ in range(2):
            stage(warehouse, target, part(0), [{"id": 1, "label": "billing"}], [{"id": 2}])
            stage(warehouse, target, part(1), [{"id": 3, "label": "sales"}])
            for _ in range(2):
                warehouse.publish(target, [part(0), part(1)])
        assert told(database, target) == [(1, "billing"), (3, "sales")]
        assert [row["id"] for row in rows_of(database, target.failures)] == [2]

    def test_what_is_staged_again_replaces_what_was(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        warehouse.prepare(target)
        stage(warehouse, target, part(), [{"id": 1, "label": "billing"}, {"id": 2, "label": "sales"}])
        stage(warehouse, target, part(), [{"id": 1, "label": "legal"}])
        warehouse.publish(target, [part()])
        assert told(database, target) == [(1, "legal")]

    def test_nothing_is_in_the_target_before_the_publish(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        warehouse.prepare(target)
        stage(warehouse, target, part(), [{"id": 1}], [{"id": 2}])
        assert rows_of(database, target.table) == rows_of(database, target.failures) == []

    def test_unstaging_leaves_no_trace_and_may_be_repeated(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        warehouse.prepare(target)
        stage(warehouse, target, part(), [{"id": 1}], [{"id": 2}])
        for _ in range(2):
            warehouse.drop_loaded(target, [part()])
        assert database.tables() == {target.table, target.failures}

    def test_publishing_what_is_not_staged_is_an_error_that_names_it(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        warehouse.prepare(target)
        stage(warehouse, target, part(0), [{"id": 1}])
        with pytest.raises(WarehouseError, match="Shard 1 "):
            warehouse.publish(target, [part(0), part(1)])
        assert rows_of(database, target.table) == []

    def test_runs_do_not_see_each_other_s_staged_parts(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        warehouse.prepare(target)
        ours, other = part(run="dag/a b"), part(run="dag/a-b")
        stage(warehouse, target, ours, [{"id": 1, "label": "ours"}])
        stage(warehouse, target, other, [{"id": 2, "label": "other's"}])
        warehouse.publish(target, [ours])
        assert told(database, target) == [(1, "ours")]

    def test_publishing_no_parts_does_nothing(self, database: BenchDatabase, warehouse: Warehouse) -> None:
        target = labels()
        warehouse.prepare(target)
        warehouse.publish(target, [])
        assert (rows_of(database, target.table), rows_of(database, target.failures)) == ([], [])

    def test_a_part_may_be_empty(self, database: BenchDatabase, warehouse: Warehouse) -> None:
        target = labels()
        warehouse.prepare(target)
        land(warehouse, target, part())
        assert rows_of(database, target.table) == rows_of(database, target.failures) == []

    def test_a_row_is_replaced_only_by_one_planned_no_earlier(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        warehouse.prepare(target)
        land(warehouse, target, part(run="late"), [{"id": 1, "label": "late", "_llm_planned_at": at(2)}])
        land(warehouse, target, part(run="early"), [{"id": 1, "label": "early", "_llm_planned_at": at(1)}])
        assert told(database, target) == [(1, "late")]
        land(warehouse, target, part(run="same"), [{"id": 1, "label": "same", "_llm_planned_at": at(2)}])
        assert told(database, target) == [(1, "same")]

    def test_of_two_staged_rows_with_one_key_the_last_planned_lands(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        warehouse.prepare(target)
        rows = [{"id": 1, "label": f"plan {n}", "_llm_planned_at": at(n)} for n in (1, 3, 2)]
        stage(warehouse, target, part(0), rows)
        stage(warehouse, target, part(1), [{"id": 1, "label": "plan 0"}], [{"id": 2, "_llm_attempts": 1}])
        stage(warehouse, target, part(2), [], [{"id": 2, "_llm_attempts": n} for n in (3, 2)])
        warehouse.publish(target, [part(n) for n in range(3)])
        assert told(database, target) == [(1, "plan 3")]
        assert [row["_llm_attempts"] for row in rows_of(database, target.failures)] == [3]

    def test_an_answer_removes_the_failure_of_its_key(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        warehouse.prepare(target)
        land(warehouse, target, part(), [], [{"id": 1}, {"id": 2}])
        land(warehouse, target, part(run="run-2"), [{"id": 1, "label": "billing", "_llm_planned_at": at(1)}])
        assert [row["id"] for row in rows_of(database, target.failures)] == [2]

    def test_an_answer_of_an_older_plan_leaves_a_newer_failure(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        warehouse.prepare(target)
        land(warehouse, target, part(run="late"), [], [{"id": 1, "_llm_planned_at": at(2)}])
        land(warehouse, target, part(run="early"), [{"id": 1, "label": "x", "_llm_planned_at": at(1)}])
        assert [row["id"] for row in rows_of(database, target.failures)] == [1]

    def test_a_failure_never_touches_an_answer(self, database: BenchDatabase, warehouse: Warehouse) -> None:
        target = labels()
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "label": "billing"}])
        land(warehouse, target, part(run="run-2"), [], [{"id": 1, "_llm_planned_at": at(1)}])
        assert told(database, target) == [(1, "billing")]
        assert [row["id"] for row in rows_of(database, target.failures)] == [1]

    def test_a_failure_that_was_answered_since_does_not_come_back(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        warehouse.prepare(target)
        stage(warehouse, target, part(0), [], [{"id": 1}])
        stage(warehouse, target, part(1, round=2), [{"id": 1, "label": "billing"}])
        for of in (part(0), part(1, round=2), part(0)):
            warehouse.publish(target, [of])
        assert rows_of(database, target.failures) == []

    def test_a_failure_replaces_the_one_before_with_its_own_attempts(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        warehouse.prepare(target)
        for attempts, planned in ((1, at(1)), (2, at(2)), (1, at(0))):
            row = {"id": 1, "_llm_attempts": attempts, "_llm_dead": attempts == 2, "_llm_planned_at": planned}
            land(warehouse, target, part(run=f"run-{planned}"), [], [row])
        found = rows_of(database, target.failures)
        assert [(row["id"], row["_llm_attempts"], bool(row["_llm_dead"])) for row in found] == [(1, 2, True)]

    def test_append_keeps_every_run_s_answer_once(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels(write_mode=WriteMode.APPEND)
        warehouse.prepare(target)
        for run, label in (("a", "first"), ("b", "second"), ("b", "second again")):
            land(
                warehouse, target, part(run=run), [{"id": 1, "label": label, "_llm_planned_at": at(ord(run))}]
            )
        assert told(database, target) == [(1, "first"), (1, "second again")]

    def test_many_parts_land_in_one_publish(self, database: BenchDatabase, warehouse: Warehouse) -> None:
        target = labels()
        warehouse.prepare(target)
        parts = [part(n) for n in range(20)]
        for of in parts:
            stage(warehouse, target, of, [{"id": of.shard, "label": "x"}], [{"id": 1000 + of.shard}])
        warehouse.publish(target, parts)
        assert len(rows_of(database, target.table)) == len(rows_of(database, target.failures)) == len(parts)

    @pytest.mark.parametrize(
        "text",
        [
            "👩‍👩‍👧 \u2028",
            "'; DROP TABLE labels; --",
            'a\r\n\t"b",\\N\\.',
            "{0} %s %(a)s ? $1 :x",
            "x" * 5_000_000,
        ],
        ids=["unicode", "hostile", "delimiters", "placeholders", "5 MB"],
    )
    def test_a_text_lands_unchanged(self, database: BenchDatabase, warehouse: Warehouse, text: str) -> None:
        target = labels(answer=columns(label=ColumnType.STRING, why=ColumnType.JSON))
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "label": text, "why": orjson.dumps([text]).decode()}])
        (found,) = rows_of(database, target.table)
        assert (found["label"], _parsed(found["why"])) == (text, [text])

    def test_a_nul_in_a_text_lands_as_the_database_can_hold_it(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "label": "a\0b"}])
        assert told(database, target) == [(1, f"a{database.nul}b")]

    def test_nul_and_lone_surrogates_in_json_land_as_replacements(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels(answer=columns(why=ColumnType.JSON))
        warehouse.prepare(target)
        why = r'{"nul":"\u0000","half":"\ud800","whole":"\ud83d\ude00","not":"\\u0000","\udc00":1}'
        land(warehouse, target, part(), [{"id": 1, "why": why}])
        ((_, found),) = told(database, target, "why")
        mended = {"nul": "\ufffd", "half": "\ufffd", "whole": "😀", "not": "\\u0000", "\ufffd": 1}
        assert _parsed(found) == mended

    def test_a_refused_write_leaves_earlier_rows_and_quotes_no_value(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels(answer=columns(label=ColumnType.STRING, why=ColumnType.JSON))
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "label": "billing"}])
        stage(warehouse, target, part(1), [{"id": 2, "label": "sales"}, {"id": None, "label": "s3cret"}])
        try:
            warehouse.publish(target, [part(1)])
        except WarehouseError as error:
            assert "s3cret" not in str(error)  # noqa: PT017  some databases take a NULL key
            assert told(database, target) == [(1, "billing")]
        else:
            assert (1, "billing") in told(database, target)


def _parsed(value: Any) -> Any:
    return orjson.loads(value) if isinstance(value, str) else value


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
