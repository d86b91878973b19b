"""The contract's cases about the two tables' shape: created, extended, refused, before anything is sent."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.settings import SchemaChange, Source, WriteMode
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.testing.staged_rows import BenchDatabase, batch, columns, labels, land, part, rows_of
from airflow_batch_llm.warehouses.base import RequiresValues, Target, Warehouse
from airflow_batch_llm.warehouses.kind import of_arrow

_EXTRA = pa.field("customer", pa.int64())


def _requires(database: BenchDatabase, rule: str) -> None:
    if rule not in database.rules:
        pytest.skip(f"this database's catalogue tells no {rule} rules")


def _make(database: BenchDatabase, target: Target, rules: Mapping[str, str], *constraints: str) -> None:
    columns = pa.schema([*target.answer_columns, _EXTRA])
    database.make(
        target.table, columns, {"id": "PRIMARY KEY" if len(database.rules) > 1 else "", **rules}, *constraints
    )


class KeepsRules:
    """The contract of `prepare` for a table that the user made: what it refuses, and what it accepts."""

    def test_a_required_column_that_is_not_written_is_refused(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        _make(database, labels(), {"customer": "NOT NULL"})
        with pytest.raises(
            TargetError, match=r"labels .*customer is NOT NULL, has no default.*carry=\['customer'\]"
        ):
            warehouse.prepare(labels())
        assert database.tables() == {"labels"}

    def test_a_required_column_of_the_failures_table_is_refused(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        database.make(target.failures, pa.schema([*target.failure_columns, _EXTRA]), {"customer": "NOT NULL"})
        with pytest.raises(TargetError, match=r"labels__failures .*customer is NOT NULL"):
            warehouse.prepare(target)
        assert database.tables() == {target.failures}

    def test_a_required_column_that_is_carried_is_written(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels(carried=pa.schema([_EXTRA]))
        database.make(target.table, target.answer_columns, {"customer": "NOT NULL"})
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "customer": 7, "label": "billing"}])
        assert [row["customer"] for row in rows_of(database, "labels")] == [7]

    def test_a_required_column_that_is_carried_is_told(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        if not isinstance(warehouse, RequiresValues):
            pytest.skip("the adapter does not tell which columns take no NULL")
        target = labels(carried=pa.schema([_EXTRA, ("note", pa.string())]))
        assert warehouse.required_columns(target) == frozenset()
        database.make(target.table, target.answer_columns, {"customer": "NOT NULL"})
        warehouse.prepare(target)
        assert warehouse.required_columns(target) == {"customer"}

    def test_a_float_is_a_key_exactly_or_is_refused_by_name(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels(key=pa.schema([("score", pa.float64())]))
        try:
            warehouse.prepare(target)
        except TargetError as error:
            assert "'score'" in str(error)  # noqa: PT017  the other outcome is as good
            assert database.tables() == set()
            return
        keys = [0.1, 0.1 + 2**-56, 1e300, 5e-324]
        for label in ("billing", "sales"):
            land(warehouse, target, part(), [{"score": key, "label": label} for key in keys])
        found = {row["score"]: row["label"] for row in rows_of(database, "labels")}
        assert found == dict.fromkeys(keys, "sales")

    def test_a_required_answer_column_is_refused_unless_every_answer_fills_it(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        _make(database, labels(), {"label": "NOT NULL"})
        with pytest.raises(TargetError, match="label is NOT NULL, and some rows may have NULL"):
            warehouse.prepare(labels())
        target = labels(never_null=("label",))
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "label": "billing"}], [{"id": 2}])
        assert [row["label"] for row in rows_of(database, "labels")] == ["billing"]

    def test_a_required_column_with_a_default_is_left_to_the_database(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        _requires(database, "generated")
        _make(database, labels(), {"customer": "DEFAULT 7 NOT NULL"})
        warehouse.prepare(labels())
        land(warehouse, labels(), part(), [{"id": 1, "label": "billing"}])
        assert [row["customer"] for row in rows_of(database, "labels")] == [7]

    def test_a_computed_column_that_would_be_written_is_refused(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        _requires(database, "generated")
        _make(database, labels(), {"label": database.generated})
        with pytest.raises(TargetError, match="label is GENERATED"):
            warehouse.prepare(labels())
        assert database.tables() == {"labels"}

    @pytest.mark.parametrize(
        ("rule", "constraint"),
        [
            ("unique", "UNIQUE (kind)"),
            ("check", "CHECK (kind > 3)"),
            ("foreign key", "FOREIGN KEY (kind) REFERENCES kinds (id)"),
        ],
    )
    def test_a_constraint_on_an_answer_column_is_refused_unless_the_user_insists(
        self, database: BenchDatabase, warehouse: Warehouse, rule: str, constraint: str
    ) -> None:
        _requires(database, rule)
        database.make("kinds", pa.schema([("id", pa.int64())]), {"id": "PRIMARY KEY"})
        changes: dict[str, Any] = {"answer": pa.schema([("kind", pa.int64())])}
        _make(database, labels(**changes), {}, constraint)
        with pytest.raises(
            TargetError, match=rf"(?i){rule} on kind.* may refuse a row: .*allow_constraints=True"
        ):
            warehouse.prepare(labels(**changes))
        assert database.tables() == {"labels", "kinds"}
        warehouse.prepare(labels(**changes, allow_constraints=True))

    def test_constraints_on_key_and_carried_columns_are_the_source_s_affair(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        _requires(database, "check")
        target = labels(carried=pa.schema([_EXTRA]))
        database.make(
            target.table, target.answer_columns, {"id": "PRIMARY KEY CHECK (id > 0)", "customer": "UNIQUE"}
        )
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "customer": 7, "label": "billing"}])
        assert [row["label"] for row in rows_of(database, "labels")] == ["billing"]

    def test_a_key_that_does_not_tell_all_texts_apart_is_refused_unless_the_user_insists(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        collation = next((rule for rule in database.rules if rule.startswith("collate ")), "")
        _requires(database, collation or "collate")
        target = labels(key=pa.schema([("id", pa.string())]))
        database.make(target.table, target.answer_columns, {"id": f"{collation} PRIMARY KEY"})
        with pytest.raises(
            TargetError, match=r"(?i)collation \w+ of the key column id .*allow_constraints=True"
        ):
            warehouse.prepare(target)
        assert database.tables() == {"labels"}
        warehouse.prepare(replace(target, allow_constraints=True))

    def test_a_unique_key_is_refused_where_each_run_appends(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        _requires(database, "unique")
        target = labels(write_mode=WriteMode.APPEND)
        _make(database, target, {})
        with pytest.raises(TargetError, match="UNIQUE on id"):
            warehouse.prepare(target)


def seed_empty(database: BenchDatabase, table: str, schema: pa.Schema) -> None:
    """Return a table without rows."""
    database.seed(table, pa.Table.from_batches([batch(schema, [])]))


def schema_of(warehouse: Warehouse, table: str) -> pa.Schema:
    """Return a table's columns, as reading shows them."""
    reader = warehouse.read(Source(table=table))
    reader.read_all()
    return reader.schema


def without(schema: pa.Schema, *names: str) -> pa.Schema:
    """Return a schema without some columns."""
    return pa.schema([field for field in schema if field.name not in names])


class ShapesTables:
    """The contract of `prepare`: what it changes, and what it refuses."""

    def test_the_place_of_a_table_is_one_for_all_spellings_and_connections(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        before = warehouse.place("labels")
        warehouse.prepare(labels())
        other = database.open()
        try:
            assert warehouse.place("labels") == other.place("labels") == other.place(before.table) == before
            assert other.place("elsewhere") not in (before, other.place("labels__failures"))
        finally:
            other.close()

    def test_missing_tables_are_created_with_all_their_columns(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        warehouse.prepare(target)
        assert schema_of(warehouse, target.table).names == target.answer_columns.names
        assert schema_of(warehouse, target.failures).names == target.failure_columns.names
        assert rows_of(database, target.table) == rows_of(database, target.failures) == []

    def test_preparing_twice_changes_nothing(self, database: BenchDatabase, warehouse: Warehouse) -> None:
        target = labels()
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "label": "billing"}])
        before = (database.tables(), rows_of(database, target.table))
        warehouse.prepare(target)
        assert (database.tables(), rows_of(database, target.table)) == before

    def test_preparing_leaves_no_other_table(self, database: BenchDatabase, warehouse: Warehouse) -> None:
        target = labels()
        warehouse.prepare(target)
        assert database.tables() == {target.table, target.failures}

    def test_key_columns_keep_the_types_of_the_source(self, warehouse: Warehouse) -> None:
        key = pa.schema(
            [("a", pa.int64()), ("b", pa.string()), ("c", pa.date32()), ("d", pa.decimal128(9, 2))]
        )
        warehouse.prepare(labels(key=key))
        found = schema_of(warehouse, "labels")
        assert [of_arrow(found.field(name).type) for name in key.names] == [
            of_arrow(type_) for type_ in key.types
        ]

    def test_a_new_answer_column_is_added_and_old_rows_keep_what_they_say(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        warehouse.prepare(labels())
        land(warehouse, labels(), part(), [{"id": 1, "label": "billing"}])
        wider = labels(answer=columns(label=ColumnType.STRING, score=ColumnType.NUMBER))
        warehouse.prepare(wider)
        land(warehouse, wider, part(1), [{"id": 2, "label": "sales", "score": 0.5}])
        found = [(row["id"], row["label"], row["score"]) for row in rows_of(database, "labels")]
        assert found == [(1, "billing", None), (2, "sales", 0.5)]

    def test_a_new_answer_column_may_be_left_out(self, database: BenchDatabase, warehouse: Warehouse) -> None:
        warehouse.prepare(labels())
        wider = labels(
            answer=columns(label=ColumnType.STRING, score=ColumnType.NUMBER),
            on_schema_change=SchemaChange.IGNORE,
        )
        warehouse.prepare(wider)
        land(warehouse, wider, part(), [{"id": 1, "label": "billing", "score": 0.5}])
        assert [(row["label"], "score" in row) for row in rows_of(database, "labels")] == [("billing", False)]

    def test_a_new_answer_column_may_be_an_error(self, warehouse: Warehouse) -> None:
        warehouse.prepare(labels())
        wider = labels(
            answer=columns(label=ColumnType.STRING, score=ColumnType.NUMBER),
            on_schema_change=SchemaChange.FAIL,
        )
        with pytest.raises(TargetError, match="score"):
            warehouse.prepare(wider)
        assert "score" not in schema_of(warehouse, "labels").names

    def test_a_column_of_an_incompatible_type_is_refused_with_both_types(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels()
        wrong = pa.schema(
            [(f.name, pa.int64() if f.name == "label" else f.type) for f in target.answer_columns]
        )
        seed_empty(database, "labels", wrong)
        with pytest.raises(
            TargetError, match=r"(?i)label is \S*(int|number)\S* and would have to hold string"
        ):
            warehouse.prepare(target)
        assert database.tables() == {"labels"}

    def test_a_table_without_the_key_column_is_refused(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        seed_empty(database, "labels", without(labels().answer_columns, "id"))
        with pytest.raises(TargetError, match="id"):
            warehouse.prepare(labels())

    def test_without_permission_to_create_a_missing_table_is_refused(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        with pytest.raises(TargetError, match="labels does not exist"):
            warehouse.prepare(labels(create=False))
        assert database.tables() == set()

    def test_without_permission_to_create_a_missing_column_is_refused(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels(create=False)
        seed_empty(database, target.table, without(target.answer_columns, "label"))
        seed_empty(database, target.failures, target.failure_columns)
        with pytest.raises(TargetError, match="lacks label"):
            warehouse.prepare(target)

    def test_tables_that_the_user_made_are_written_without_ddl(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels(create=False)
        own = pa.schema([*target.answer_columns, pa.field("reviewed_by", pa.string())])
        database.seed(target.table, pa.Table.from_batches([batch(own, [{"id": 1, "reviewed_by": "Ann"}])]))
        seed_empty(database, target.failures, target.failure_columns)
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "label": "billing"}, {"id": 2, "label": "sales"}])
        land(warehouse, target, part(1), [{"id": 2, "label": "legal"}], [{"id": 3}])
        found = [(row["id"], row["label"], row["reviewed_by"]) for row in rows_of(database, target.table)]
        assert found == [(1, "billing", "Ann"), (2, "legal", None)]
        assert [row["id"] for row in rows_of(database, target.failures)] == [3]

    @pytest.mark.parametrize(
        "name", ["select", "we ird", 'quo"te', "x); DROP TABLE labels; --", "ünï", "%s", "{0}", "a.b", "?"]
    )
    def test_any_name_can_be_a_column(self, database: BenchDatabase, warehouse: Warehouse, name: str) -> None:
        target = labels(key=pa.schema([(name, pa.int64())]), answer=pa.schema([(f"{name}2", pa.string())]))
        warehouse.prepare(target)
        for text in ("billing", "sales"):
            land(warehouse, target, part(), [{name: 1, f"{name}2": text}], [{name: 2}])
        assert [(row[name], row[f"{name}2"]) for row in rows_of(database, "labels")] == [(1, "sales")]
        keys = batch(target.key, [{name: 2}])
        assert warehouse.known(target, keys).to_pylist()[0]["_llm_failed_attempts"] == 1

    @pytest.mark.parametrize("name", ["order", "we ird", "x; DROP TABLE labels"])
    def test_any_name_can_be_a_table(self, database: BenchDatabase, warehouse: Warehouse, name: str) -> None:
        target = labels(table=name)
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "label": "billing"}])
        assert [row["label"] for row in rows_of(database, name)] == ["billing"]

    @pytest.mark.parametrize("name", ["", "a..b", '"'])
    def test_what_is_no_table_name_is_refused(self, warehouse: Warehouse, name: str) -> None:
        with pytest.raises(TargetError, match="not a table name"):
            warehouse.prepare(Target(table=name, failures="f", key=pa.schema([("id", pa.int64())])))

    def test_a_column_name_that_would_be_cut_short_is_refused(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        if database.longest_name is None:
            pytest.skip("this database keeps names of any length")
        with pytest.raises(TargetError, match="longer than"):
            warehouse.prepare(labels(answer=pa.schema([("x" * (database.longest_name + 1), pa.string())])))
