"""What must happen to a table before a stage may write to it: nothing, creation, new columns, or refusal.

Pure: the table's columns come in as names and types in the database's own words, a `Shape` goes out. A
refusal names every column that does not fit, with both types, so that one look is enough to mend the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from airflow_batch_llm.core.settings import SchemaChange
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.dialect import Dialect
from airflow_batch_llm.warehouses.kind import Kind, fits, of_arrow, of_database


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a table is brought to what a stage needs of it."""

    table: str
    create: bool  # the table is missing
    add: pa.Schema  # columns to be added to the table that is there
    leave_out: frozenset[str]  # answer columns that the table does not have and does not get
    columns: pa.Schema  # what is written, once the table has its shape


def shape_target(target: Target, existing: Mapping[str, str] | None, dialect: Dialect) -> Shape:
    """What the target table needs. `existing`: its columns with the database's types; None: no table."""
    return _shape(
        target,
        table=target.table,
        wanted=target.answer_columns,
        optional=frozenset([*target.carried.names, *target.answer.names]) - {target.partition_by},
        existing=existing,
        dialect=dialect,
    )


def shape_failures(target: Target, existing: Mapping[str, str] | None, dialect: Dialect) -> Shape:
    """What the failures table needs. It is the stage's own: no policy for schema changes applies."""
    return _shape(
        target,
        table=target.failures,
        wanted=target.failure_columns,
        optional=frozenset(),
        existing=existing,
        dialect=dialect,
    )


def _shape(
    target: Target,
    *,
    table: str,
    wanted: pa.Schema,
    optional: frozenset[str | None],
    existing: Mapping[str, str] | None,
    dialect: Dialect,
) -> Shape:
    _refuse_twice_named(table, wanted)
    if existing is None:
        if not target.create:
            raise TargetError(
                f"The table {table} does not exist, and create_target=False forbids creating it."
            )
        return Shape(table=table, create=True, add=pa.schema([]), leave_out=frozenset(), columns=wanted)
    present = {name.lower(): type_ for name, type_ in existing.items()}
    _refuse_misfits(table, wanted, present, dialect)
    missing = [field for field in wanted if field.name.lower() not in present]
    leave_out = frozenset[str]()
    if target.on_schema_change is SchemaChange.IGNORE:
        leave_out = frozenset(field.name for field in missing if field.name in optional)
    add = [field for field in missing if field.name not in leave_out]
    _refuse_additions(target, table, add, optional)
    return Shape(
        table=table,
        create=False,
        add=pa.schema(add),
        leave_out=leave_out,
        columns=pa.schema([field for field in wanted if field.name not in leave_out]),
    )


def _refuse_twice_named(table: str, wanted: pa.Schema) -> None:
    seen: set[str] = set()
    for name in wanted.names:
        if name.lower() in seen:
            raise TargetError(
                f"Two columns of {table} would be called {name!r} (most databases take both cases for one): "
                "rename the answer's with `columns=`, or do not carry the source's."
            )
        seen.add(name.lower())


def _refuse_misfits(table: str, wanted: pa.Schema, present: Mapping[str, str], dialect: Dialect) -> None:
    misfits = []
    for field in wanted:
        has = present.get(field.name.lower())
        if has is None:
            continue
        kind = of_arrow(field.type)
        if kind is Kind.VECTOR and dialect.vector_brackets == "[]":
            kind = Kind.JSON  # that is what it is written as
        ours = dialect.column_type(field.type)
        column = of_database(has, dialect.name)
        # What we would create ourselves always fits, whatever kind the database makes of it.
        if column is None or not (fits(kind, column) or column is of_database(ours, dialect.name)):
            misfits.append(f"{field.name} is {has} and would have to hold {kind} ({ours})")
    if misfits:
        raise TargetError(
            f"The table {table} does not fit: {'; '.join(misfits)}. "
            "Change the column's type, write to another table, or rename the answer's column with `columns=`."
        )


def _refuse_additions(
    target: Target, table: str, add: list[pa.Field], optional: frozenset[str | None]
) -> None:
    missing_keys = [field.name for field in add if field.name in target.key.names]
    if missing_keys:
        raise TargetError(
            f"The table {table} has no column {', '.join(missing_keys)}, which is in the key of this stage."
        )
    if target.partition_by is not None and any(field.name == target.partition_by for field in add):
        raise TargetError(
            f"The table {table} has no column {target.partition_by}, by which it is to be partitioned."
        )
    names = ", ".join(field.name for field in add)
    if add and not target.create:
        advice = (
            'or set on_schema_change="ignore"'
            if all(field.name in optional for field in add)
            else "or let it be created"
        )
        raise TargetError(
            f"The table {table} lacks {names}, and create_target=False forbids adding columns: "
            f"add them, {advice}."
        )
    changed = [field.name for field in add if field.name in optional]
    if changed and target.on_schema_change is SchemaChange.FAIL:
        raise TargetError(
            f"The table {table} lacks {', '.join(changed)}, and on_schema_change is {target.on_schema_change}."
        )
