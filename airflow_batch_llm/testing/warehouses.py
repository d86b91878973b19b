"""The contract of a warehouse adapter, as tests to inherit.

    class TestMyWarehouse(WarehouseContract):
        @pytest.fixture
        def database(self, tmp_path) -> Database: ...

A case that an adapter cannot pass is overridden there with an `xfail` that says why.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.settings import Guards, Source, WriteMode
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.staged_rows import (
    TARGET,
    BenchDatabase,
    WholeStage,
    at,
    columns,
    labels,
    land,
    part,
    rows_of,
    stage,
)
from airflow_batch_llm.testing.warehouse_reads import CarriesColumns, KnowsKeys, ReadsRows
from airflow_batch_llm.testing.warehouse_shapes import KeepsRules, ShapesTables
from airflow_batch_llm.testing.warehouse_side_tables import ReviewsDeadRows, WritesLedgers
from airflow_batch_llm.testing.warehouse_writes import ANSWERS, MergesAnswers, SharesWithProcesses
from airflow_batch_llm.warehouses.base import CopiesAnswers, Part, Target, Warehouse

#: Hashes of inputs, and of two specs.
X, Y, Z = ("0a" * 16, "0b" * 16, "0c" * 16)
SPEC, OTHER_SPEC = "5e" * 16, "5f" * 16

#: The part in which rows wait for a copy.
COPIES = part(0, run="run-2", round=0)


def reusing(**changes: Any) -> Target:
    """Return a target that knows where its answers come from."""
    return labels(**{"has_route": True, "has_reused": True, **changes})


def bought(key: int, input_hash: str, label: str, **changes: Any) -> dict[str, Any]:
    """Return an answer by the usual spec."""
    return {
        "id": key,
        "label": label,
        "_llm_input_hash": input_hash,
        "_llm_spec_hash": SPEC,
        "_llm_route": "default",
        **changes,
    }


def copy(
    warehouse: Warehouse,
    target: Target,
    wanted: dict[int, str],
    tables: tuple[str, ...] = (),
    of: Part = COPIES,
    **changes: Any,
) -> int:
    """Stage keys with their input hashes, and copy the answers to them. Returns how many are there then."""
    assert isinstance(warehouse, CopiesAnswers)
    common = {"_llm_spec_hash": SPEC, "_llm_shard": -1, "_llm_planned_at": at(60), "_llm_cost_usd": 0.0}
    rows = [{"id": key, "_llm_input_hash": hash_, **common, **changes} for key, hash_ in wanted.items()]
    stage(warehouse, target.without_answer, of, rows)
    return warehouse.copy(target, of, tables or (target.table,))


def told(database: BenchDatabase, table: str = "labels") -> list[tuple[Any, ...]]:
    """Return each row's key, its label, and where it comes from."""
    return [(row["id"], row["label"], row["_llm_reused_run"]) for row in rows_of(database, table)]


class CopiesKnownAnswers:
    """The contract of `answered` and `copy`."""

    @pytest.fixture
    def copying(self, warehouse: Warehouse) -> Warehouse:
        if not isinstance(warehouse, CopiesAnswers):
            pytest.skip("answers are not copied in this database")
        return warehouse

    def test_an_answer_of_every_type_is_copied_as_it_is(
        self, database: BenchDatabase, copying: Warehouse
    ) -> None:
        answers = columns(**{f"a_{type_.value}": type_ for type_ in ANSWERS})
        target = reusing(answer=answers, carried=pa.schema([("day", pa.date32()), ("note", pa.string())]))
        copying.prepare(target)
        values = {f"a_{type_.value}": values[0] for type_, values in ANSWERS.items()}
        land(copying, target, part(), [bought(1, X, "", note="old", **values)])
        assert copy(copying, target, {2: X}, note="new") == 1
        first, second = rows_of(database, target.table)
        assert {name: first[name] for name in answers.names} == {name: second[name] for name in answers.names}
        assert (second["note"], second["_llm_reused_run"], second["_llm_run_id"]) == ("new", "run-1", "run-2")
        assert (second["_llm_model"], second["_llm_route"]) == ("model", "default")
        assert (first["_llm_cost_usd"], second["_llm_cost_usd"]) == (0.25, 0.0)

    def test_nothing_is_copied_from_another_spec_or_input(
        self, database: BenchDatabase, copying: Warehouse
    ) -> None:
        target = reusing()
        copying.prepare(target)
        land(copying, target, part(), [bought(1, X, "old", _llm_spec_hash=OTHER_SPEC), bought(2, Y, "bug")])
        assert copy(copying, target, {3: X, 4: Z}) == 0
        assert told(database) == [(1, "old", None), (2, "bug", None)]

    def test_a_copy_may_be_repeated_and_names_who_bought_the_answer(
        self, database: BenchDatabase, copying: Warehouse
    ) -> None:
        target = reusing()
        copying.prepare(target)
        failed = {"id": 2, "_llm_planned_at": at(30)}
        land(copying, target, part(), [bought(1, X, "bug")], [failed])
        assert copy(copying, target, {2: X}) == 1
        land(copying, target, part(3, run="run-3"), [bought(1, Y, "new", _llm_planned_at=at(90))])
        assert copy(copying, target, {2: X}) == 1
        later = part(0, run="run-4", round=0)
        assert copy(copying, target, {4: X}, of=later, _llm_planned_at=at(120)) == 1
        assert told(database) == [(1, "new", None), (2, "bug", "run-1"), (4, "bug", "run-1")]
        assert rows_of(database, target.failures) == []

    def test_rows_whose_inputs_change_places_get_each_other_s_answers(
        self, database: BenchDatabase, copying: Warehouse
    ) -> None:
        target = reusing()
        copying.prepare(target)
        land(copying, target, part(), [bought(1, X, "x"), bought(2, Y, "y")])
        assert copy(copying, target, {1: Y, 2: X, 3: X, 4: Y, 5: Z}) == 4
        assert told(database) == [(1, "y", "run-1"), (2, "x", "run-1"), (3, "x", "run-1"), (4, "y", "run-1")]

    def test_a_later_answer_stays(self, database: BenchDatabase, copying: Warehouse) -> None:
        target = reusing()
        copying.prepare(target)
        land(copying, target, part(), [bought(1, X, "x"), bought(2, Y, "later", _llm_planned_at=at(90))])
        assert copy(copying, target, {2: X}) == 1
        assert told(database) == [(1, "x", None), (2, "later", None)]

    def test_an_appended_copy_stands_beside_what_was_there(
        self, database: BenchDatabase, copying: Warehouse
    ) -> None:
        target = reusing(write_mode=WriteMode.APPEND)
        copying.prepare(target)
        land(copying, target, part(), [bought(1, X, "x"), bought(2, Y, "y")])
        for _ in range(2):
            assert copy(copying, target, {2: X, 3: X}, _llm_run_id="run-2") == 2
        land(copying, target, part(0, run="run-2"), [], [{"id": 4, "_llm_shard": 0}])
        found = sorted((key, label) for key, label, _ in told(database))
        assert found == [(1, "x"), (2, "x"), (2, "y"), (3, "x")]

    def test_another_table_is_looked_into_if_its_answers_fit(
        self, database: BenchDatabase, copying: Warehouse
    ) -> None:
        assert isinstance(copying, CopiesAnswers)
        target, other = reusing(), labels(table="others", key=pa.schema([("name", pa.string())]))
        counts = labels(table="counts", answer=columns(label=ColumnType.INTEGER))
        for one in (target, other, counts):
            copying.prepare(one)
        theirs = {"_llm_input_hash": X, "_llm_spec_hash": SPEC}
        land(copying, other, part(run="theirs"), [{"name": "a", "label": "other", **theirs}])
        land(copying, target, part(), [bought(1, Y, "own")])
        assert copy(copying, target, {2: X, 3: Y}, ("labels", "others")) == 2
        assert told(database) == [(1, "own", None), (2, "other", "theirs"), (3, "own", "run-1")]
        with pytest.raises(TargetError, match="counts, which does not fit: label is"):
            copying.answered(target, "counts", SPEC, None)
        with pytest.raises(TargetError, match="nowhere, which does not exist"):
            copying.answered(target, "nowhere", SPEC, None)

    def test_the_inputs_that_have_answers_are_told(self, copying: Warehouse) -> None:
        assert isinstance(copying, CopiesAnswers)
        target = reusing(never_null=("label",))
        copying.prepare(target)
        rows = [bought(1, X, "x"), bought(2, Y, "y"), bought(3, Z, "z", _llm_spec_hash=OTHER_SPEC)]
        empty = {**bought(4, "0d" * 16, ""), "label": None}
        land(copying, replace(target, never_null=()), part(), [*rows, empty])
        for among, expected in ((None, {X, Y}), ([X, Z], {X})):
            found = copying.answered(target, "labels", SPEC, among).read_all()
            assert set(found.column(0).to_pylist()) == expected

    @pytest.fixture
    def running(self) -> Iterator[Simulator]:
        with Simulator(batch_seconds=0) as simulator:
            yield simulator

    def test_tonights_repetitions_of_last_months_texts_are_not_asked(
        self, database: BenchDatabase, copying: Warehouse, running: Simulator, tmp_path: Path
    ) -> None:
        copying.close()
        rows = [(n, f"text {n}", 1) for n in range(100)]
        rows += [(100 + n, f"text {n if n < 30 else 200 + n}", 2) for n in range(100)]
        names = ("id", "body", "month")
        database.seed("tickets", pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))))
        stage = WholeStage(
            simulator=running,
            folder=tmp_path / "stage",
            open=database.open,
            source=Source(sql="SELECT id, body FROM tickets WHERE month = 1"),
            key=("id",),
            guards=Guards(),
        )
        assert stage.complete("last-month").report.requests == 100
        tonight = Source(sql="SELECT id, body FROM tickets WHERE month = 2")
        report = stage.complete("tonight", source=tonight).report
        assert report.why == {"new": 70, "reused": 30}
        assert (report.requests, report.rows, report.passed) == (70, 70, True)
        found = rows_of(database, TARGET)
        assert len(found) == 200
        copied = [row for row in found if row["_llm_reused_run"] is not None]
        assert {row["_llm_reused_run"] for row in copied} == {"last-month/g1"}
        assert sum(row["_llm_cost_usd"] for row in copied) == 0
        labelled = {row["id"]: row["label"] for row in found}
        assert [labelled[100 + n] for n in range(30)] == [labelled[n] for n in range(30)]
        again = stage.complete("again", source=tonight).report
        assert again.why == {"answered": 100}


__all__ = ["WarehouseContract"]


class WarehouseContract(
    ReadsRows,
    ShapesTables,
    KeepsRules,
    MergesAnswers,
    KnowsKeys,
    CarriesColumns,
    ReviewsDeadRows,
    CopiesKnownAnswers,
    WritesLedgers,
    SharesWithProcesses,
):
    """Everything that an adapter promises. Every case starts from an empty database."""
