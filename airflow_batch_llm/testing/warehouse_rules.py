"""The contract's cases about rules that the database enforces: what it would refuse at publish, `prepare` refuses."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest

from airflow_batch_llm.core.settings import WriteMode
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.testing.database import Database, rows_of
from airflow_batch_llm.testing.staged_rows import labels, land, part
from airflow_batch_llm.warehouses.base import Target, Warehouse

_EXTRA = pa.field("customer", pa.int64())


def _requires(database: Database, rule: str) -> None:
    if rule not in database.rules:
        pytest.skip(f"this database's catalogue tells no {rule} rules")


def _make(database: Database, target: Target, rules: Mapping[str, str], *constraints: str) -> None:
    columns = pa.schema([*target.answer_columns, _EXTRA])
    database.make(
        target.table, columns, {"id": "PRIMARY KEY" if len(database.rules) > 1 else "", **rules}, *constraints
    )


class KeepsRules:
    """What `prepare` refuses of a table that the user made, and what it lets pass."""

    def test_a_required_column_that_is_not_written_is_refused(
        self, database: Database, warehouse: Warehouse
    ) -> None:
        _make(database, labels(), {"customer": "NOT NULL"})
        with pytest.raises(
            TargetError, match=r"labels .*customer is NOT NULL, has no default.*carry=\['customer'\]"
        ):
            warehouse.prepare(labels())
        assert database.tables() == {"labels"}

    def test_a_required_column_of_the_failures_table_is_refused(
        self, database: Database, warehouse: Warehouse
    ) -> None:
        target = labels()
        database.make(target.failures, pa.schema([*target.failure_columns, _EXTRA]), {"customer": "NOT NULL"})
        with pytest.raises(TargetError, match=r"labels__failures .*customer is NOT NULL"):
            warehouse.prepare(target)
        assert database.tables() == {target.failures}

    def test_a_required_column_that_is_carried_is_written(
        self, database: Database, warehouse: Warehouse
    ) -> None:
        target = labels(carried=pa.schema([_EXTRA]))
        database.make(target.table, target.answer_columns, {"customer": "NOT NULL"})
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "customer": 7, "label": "billing"}])
        assert [row["customer"] for row in rows_of(database, "labels")] == [7]

    def test_a_required_answer_column_is_refused_unless_every_answer_fills_it(
        self, database: Database, warehouse: Warehouse
    ) -> None:
        _make(database, labels(), {"label": "NOT NULL"})
        with pytest.raises(TargetError, match="label is NOT NULL, and some rows may have NULL"):
            warehouse.prepare(labels())
        target = labels(never_null=("label",))
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "label": "billing"}], [{"id": 2}])
        assert [row["label"] for row in rows_of(database, "labels")] == ["billing"]

    def test_a_required_column_with_a_default_is_left_to_the_database(
        self, database: Database, warehouse: Warehouse
    ) -> None:
        _requires(database, "generated")
        _make(database, labels(), {"customer": "DEFAULT 7 NOT NULL"})
        warehouse.prepare(labels())
        land(warehouse, labels(), part(), [{"id": 1, "label": "billing"}])
        assert [row["customer"] for row in rows_of(database, "labels")] == [7]

    def test_a_computed_column_that_would_be_written_is_refused(
        self, database: Database, warehouse: Warehouse
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
        self, database: Database, warehouse: Warehouse, rule: str, constraint: str
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
        self, database: Database, warehouse: Warehouse
    ) -> None:
        _requires(database, "check")
        target = labels(carried=pa.schema([_EXTRA]))
        database.make(
            target.table, target.answer_columns, {"id": "PRIMARY KEY CHECK (id > 0)", "customer": "UNIQUE"}
        )
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "customer": 7, "label": "billing"}])
        assert [row["label"] for row in rows_of(database, "labels")] == ["billing"]

    def test_a_unique_key_is_refused_where_each_run_appends(
        self, database: Database, warehouse: Warehouse
    ) -> None:
        _requires(database, "unique")
        target = labels(write_mode=WriteMode.APPEND)
        _make(database, target, {})
        with pytest.raises(TargetError, match="UNIQUE on id"):
            warehouse.prepare(target)
