"""Decide what must happen to a table before a stage may write to it: nothing, creation, new columns, or refusal.

Pure: the table's columns come in as names and types in the database's own words, a `Shape` goes out. A
refusal names every column that does not fit, with both types, so that one look is enough to correct the table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

import pyarrow as pa

from airflow_batch_llm.core.settings import SchemaChange
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.dialect import Dialect
from airflow_batch_llm.warehouses.kind import ColumnKind, fits, of_arrow


@dataclass(frozen=True, slots=True, kw_only=True)
class TableShape:
    """The changes that a table needs for a stage."""

    table: str
    create: bool  # the table is missing
    add: pa.Schema  # columns to be added to the table that is there
    leave_out: frozenset[str]  # answer columns that the table does not have and does not get
    columns: pa.Schema  # what is written, once the table has its shape


def shape_target(target: Target, existing: Mapping[str, str] | None, dialect: Dialect) -> TableShape:
    """Return the changes that the target table needs.

    `existing` holds its columns with the database's types, or is None if there is no table.
    """
    return _shape(
        target,
        table=target.table,
        wanted=target.answer_columns,
        optional=frozenset([*target.carried.names, *target.answer.names]) - {target.partition_by},
        existing=existing,
        dialect=dialect,
    )


def shape_failures(target: Target, existing: Mapping[str, str] | None, dialect: Dialect) -> TableShape:
    """Return the changes that the failures table needs. It is the stage's own: no policy for schema changes applies."""
    return _shape(
        target,
        table=target.failures,
        wanted=target.failure_columns,
        optional=frozenset(),
        existing=existing,
        dialect=dialect,
    )


def shape_reviews(target: Target, existing: Mapping[str, str] | None, dialect: Dialect) -> TableShape:
    """Return the changes that the review table needs. It has every column, even those that the target leaves out."""
    assert target.review is not None, "the stage keeps a review table"
    return _shape(
        target,
        table=target.review,
        wanted=target.review_columns,
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
) -> TableShape:
    _refuse_twice_named(table, wanted)
    if existing is None:
        if not target.create:
            raise TargetError(
                f"The table {table} does not exist, and create_target=False forbids creating it."
            )
        return TableShape(table=table, create=True, add=pa.schema([]), leave_out=frozenset(), columns=wanted)
    present = {name.lower(): type_ for name, type_ in existing.items()}
    _refuse_misfits(table, wanted, present, dialect)
    missing = [field for field in wanted if field.name.lower() not in present]
    match target.on_schema_change:
        case SchemaChange.IGNORE:
            leave_out = frozenset(field.name for field in missing if field.name in optional)
        case SchemaChange.APPEND_NEW_COLUMNS | SchemaChange.FAIL:
            leave_out = frozenset()
        case _:
            assert_never(target.on_schema_change)
    add = [field for field in missing if field.name not in leave_out]
    _refuse_additions(target, table, add, optional)
    return TableShape(
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
    if misfits := misfitting(wanted, present, dialect):
        raise TargetError(
            f"The table {table} does not fit: {'; '.join(misfits)}. "
            "Change the column's type, write to another table, or rename the answer's column with `columns=`."
        )


def misfitting(wanted: pa.Schema, present: Mapping[str, str], dialect: Dialect) -> list[str]:
    """Return the fault of each column of a table that cannot hold the wanted type. Names are in small letters."""
    misfits = []
    for field in wanted:
        has = present.get(field.name.lower())
        if has is None:
            continue
        kind = of_arrow(field.type)
        if kind is ColumnKind.VECTOR and dialect.vector_brackets == "[]":
            kind = ColumnKind.JSON  # that is what it is written as
        ours = dialect.column_type(field.type)
        column = dialect.kind_of(has)
        # A column of the type that the package would create always fits, even if the database shows another kind.
        if column is None or not (fits(kind, column) or column is dialect.kind_of(ours)):
            misfits.append(f"{field.name} is {has} and would have to hold {kind} ({ours})")
    return misfits


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
    match target.on_schema_change:
        case SchemaChange.FAIL if changed:
            raise TargetError(
                f"The table {table} lacks {', '.join(changed)}, and on_schema_change is {target.on_schema_change}."
            )
        case SchemaChange.FAIL | SchemaChange.APPEND_NEW_COLUMNS | SchemaChange.IGNORE:
            return
        case _:
            assert_never(target.on_schema_change)


#: Bookkeeping columns that hold a value in every row. In the others some rows have NULL.
_ALWAYS_FILLED = frozenset(
    {
        "_llm_input_hash", "_llm_spec_hash", "_llm_model", "_llm_run_id", "_llm_shard", "_llm_planned_at",
        "_llm_processed_at", "_llm_shared", "_llm_outcome", "_llm_attempts", "_llm_dead",
    }
)  # fmt: skip


class ConstraintKind(StrEnum):
    """The kinds of constraint that a catalogue shows."""

    UNIQUE = "UNIQUE"
    CHECK = "CHECK"
    FOREIGN_KEY = "FOREIGN KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A constraint, and the columns that it looks at."""

    kind: ConstraintKind
    name: str
    columns: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of one table. Columns are named as the database stores them."""

    not_null: frozenset[str] = frozenset()
    with_default: frozenset[str] = frozenset()
    generated: frozenset[str] = frozenset()  # computed columns, and identities that take no value
    constraints: tuple[Constraint, ...] = ()
    folds: tuple[
        tuple[str, str], ...
    ] = ()  # columns in which different texts are equal, and their collations
    row_security: bool = False  # policies decide which rows this connection sees and writes


def required_columns(target: Target, rules: Rules) -> frozenset[str]:
    """Return the carried columns that are NOT NULL in the target."""
    required = _lower(rules.not_null)
    return frozenset(name for name in target.carried.names if name.lower() in required)


def refuse_rules(target: Target, shape: TableShape, rules: Rules) -> None:
    """Raise `TargetError` with every rule of the table that a publish would break or might break."""
    complaints = [*_column_complaints(target, shape, rules), *_constraint_complaints(target, shape, rules)]
    if rules.row_security:
        complaints.append(
            "row-level security applies to this connection's role, so a merge does not see every row: use a role that"
            " owns the table or has BYPASSRLS"
        )
    if complaints:
        raise TargetError(
            f"The table {shape.table} would refuse what this stage writes: {'; '.join(complaints)}."
        )


def _column_complaints(target: Target, shape: TableShape, rules: Rules) -> Iterator[str]:
    written = _lower(shape.columns.names)
    for column in sorted(rules.generated):
        if column.lower() in written:
            yield (
                f"{column} is GENERATED by the database and takes no value: make it a plain column, or give the"
                " answer's column another name with `columns=`"
            )
    never_null = _lower([*target.key.names, *target.carried.names, *target.never_null]) | _ALWAYS_FILLED
    for column in sorted(rules.not_null - rules.generated):
        name = column.lower()
        if name not in written and column not in rules.with_default:
            yield (
                f"{column} is NOT NULL, has no default, and is not written: give it a default, let it be NULL, or copy"
                f" it from the source with carry=[{column!r}]"
            )
        elif name in written and name not in never_null:
            fix = (
                ""
                if name.startswith("_llm_")
                else ", or make it required and not nullable in the output type"
            )
            yield f"{column} is NOT NULL, and some rows may have NULL in it: let the column be NULL{fix}"


def _constraint_complaints(target: Target, shape: TableShape, rules: Rules) -> Iterator[str]:
    if target.allow_constraints:
        return
    written, key = _lower(shape.columns.names), _lower(target.key.names)
    for column, collation in rules.folds:
        if column.lower() in key:
            yield (
                f"the collation {collation} of the key column {column} takes texts such as 'a' and 'A' for one key, so one of"
                " two answers would be lost, and be bought again each night: give the column a collation that keeps all texts"
                " apart, or set allow_constraints=True if no two keys of the source are one to it"
            )
    carried = _lower(target.carried.names) if shape.table == target.table else frozenset()
    appended = not target.is_merged and shape.table == target.table
    for constraint in rules.constraints:
        columns = _lower(constraint.columns) & written
        answers = columns - key - carried
        if constraint.kind is ConstraintKind.UNIQUE:
            if appended:
                is_kept = "_llm_run_id" in columns or not columns
            else:
                is_kept = columns >= key or not columns or (not answers and bool(columns & carried))
        else:
            is_kept = not answers
        if not is_kept:
            listed = ", ".join(sorted(constraint.columns))
            yield (
                f"the constraint {constraint.name} ({constraint.kind} on {listed}) may refuse a row: drop it, or set"
                " allow_constraints=True if every answer keeps it"
            )


def _lower(names: "list[str] | frozenset[str]") -> frozenset[str]:
    return frozenset(name.lower() for name in names)
