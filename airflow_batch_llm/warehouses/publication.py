"""The statements of a preparation and of a publish, in their order. Pure: an adapter runs them in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses.base import Part, Target
from airflow_batch_llm.warehouses.dialect import Dialect, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind, of_arrow
from airflow_batch_llm.warehouses.statements import FAILURE_ORDER, Landing, Statements
from airflow_batch_llm.warehouses.target import Rules, TableShape, refuse_rules, shape_failures, shape_target

Columns = Mapping[str, str]
_NO_RULES = Rules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that is there: its columns with the database's types, and whether the key is unique in it."""

    columns: Columns
    unique: bool
    rules: Rules = _NO_RULES
    """The rules that the database enforces when rows are merged. `preparation` needs them, `landings` does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """The relations of the staged rows, for a FROM clause. `twice`: some key is there twice."""

    answers: str
    failures: str | None  # None: there are none
    answers_twice: bool = True
    failures_twice: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One statement."""

    sql: str
    parameters: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """A stage's two tables as they are: None where there is none."""

    target: Table | None
    failures: Table | None


def preparation(target: Target, tables: Tables, statements: Statements) -> list[str]:
    """DDL that gives the two tables their shape, then statements that show whether they may be written."""
    dialect = statements.dialect
    shapes = (
        shape_target(target, _columns(tables.target), dialect),
        shape_failures(target, _columns(tables.failures), dialect),
    )
    ddl: list[str] = []
    for shape, table in zip(shapes, (tables.target, tables.failures), strict=True):
        merged = shape.table == target.failures or target.is_merged
        unique = merged and dialect.upsert in (Upsert.ON_CONFLICT, Upsert.ON_DUPLICATE_KEY)
        if unique and table is not None and not table.unique and dialect.upsert is Upsert.ON_DUPLICATE_KEY:
            raise TargetError(
                f"The table {shape.table} needs a primary key or a unique index on "
                f"({', '.join(target.key.names)}): {dialect.title} merges by it."
            )
        if table is not None:
            refuse_rules(target, shape, table.rules)
            if merged:
                _refuse_others(shape, table, dialect)
        if shape.create:
            ddl.append(statements.create(target, shape.table, shape.columns, unique=unique))
        ddl.extend(statements.add_columns(shape.table, shape.add))
    for shape in shapes:
        ddl.extend(statements.probe(shape.table, shape.columns.names, target.key.names[0]))
    return ddl


def _refuse_others(shape: TableShape, table: Table | None, dialect: Dialect) -> None:
    """Refuse a table with columns that a row would lose, where rows cannot be updated."""
    if table is None or dialect.upsert is not Upsert.DELETE_KEYS_INSERT:
        return
    ours = {name.lower() for name in shape.columns.names}
    others = [name for name in table.columns if name.lower() not in ours]
    if others:
        raise TargetError(
            f"The table {shape.table} has {', '.join(others)}, which this stage does not write: {dialect.title} replaces"
            " whole rows. Carry them from the source, or write to another table."
        )


def landings(target: Target, tables: Tables, statements: Statements) -> tuple[Landing, Landing]:
    """The two tables with the columns that are written to each. Both are there: `preparation` ran before."""
    dialect = statements.dialect
    shape = shape_target(target, _columns(tables.target), dialect)
    failed = shape_failures(target, _columns(tables.failures), dialect)
    # A user may have added a column since the preparation.
    if target.is_merged:
        _refuse_others(shape, tables.target, dialect)
    _refuse_others(failed, tables.failures, dialect)
    return (
        Landing(
            table=target.table,
            key=tuple(target.key.names),
            columns=tuple(shape.columns.names),
            casts=_casts(shape, tables.target, statements),
            how=_how(tables.target, shape, statements),
        ),
        Landing(
            table=target.failures,
            key=tuple(target.key.names),
            columns=tuple(failed.columns.names),
            casts=_casts(failed, tables.failures, statements),
            order=FAILURE_ORDER,
            how=_how(tables.failures, failed, statements),
        ),
    )


def publication(
    target: Target,
    parts: Sequence[Part],
    staged: Staged,
    both: tuple[Landing, Landing],
    statements: Statements,
) -> list[Step]:
    """Answers first, then the failures that they settle, then the failures that are left."""
    answers, failures = both
    rows = (statements.latest if staged.answers_twice else statements.plain)(answers, staged.answers)
    if not target.is_merged:
        pairs = sorted({(part.run_id, part.shard) for part in parts})
        parameters = tuple(value for pair in pairs for value in pair)
        steps = [
            Step(sql=statements.remove_shards(answers, len(pairs)), parameters=parameters),
            Step(sql=statements.append(answers, rows)),
        ]
    else:
        steps = [Step(sql=sql) for sql in statements.upsert(answers, rows)]
    steps.append(Step(sql=statements.settle(failures, staged.answers)))
    if staged.failures is None:
        return steps
    rows = (statements.latest if staged.failures_twice else statements.plain)(failures, staged.failures)
    left = statements.unanswered(failures, answers, rows)
    return [*steps, *(Step(sql=sql) for sql in statements.upsert(failures, left))]


def staged_columns(schema: pa.Schema, key: Sequence[str], statements: Statements) -> list[str]:
    """The columns of a staging table: quoted name and type."""
    dialect = statements.dialect
    return [
        f"{dialect.quote(field.name)} {dialect.staged_type(field.type, key=field.name in key)}"
        for field in schema
    ]


def _columns(table: Table | None) -> Columns | None:
    return None if table is None else table.columns


def _how(table: Table | None, shape: TableShape, statements: Statements) -> Upsert:
    usual = statements.dialect.upsert
    if usual is Upsert.ON_CONFLICT and (table is None or not table.unique):
        return Upsert.UPDATE_INSERT
    if usual is Upsert.DELETE_INSERT and table is not None:
        # A row that is written again would lose what others have in it, and an index may hold its key still.
        others = {name.lower() for name in table.columns} - {name.lower() for name in shape.columns.names}
        return Upsert.UPDATE_INSERT if others or table.unique else usual
    return usual


def _casts(shape: TableShape, table: Table | None, statements: Statements) -> dict[str, str]:
    dialect = statements.dialect
    present = {name.lower(): type_ for name, type_ in (table.columns if table else {}).items()}
    casts = {}
    for field in shape.columns:
        kind = of_arrow(field.type)
        template = dialect.from_text.get(kind)
        # JSON that goes to a text column stays text.
        if template and dialect.kind_of(present.get(field.name.lower(), "")) is not ColumnKind.STRING:
            casts[field.name] = template
    return casts
