"""The review table and tables of records, as pure SQL text from quoted names.

The review table holds the dead rows of the failures table, for people to answer. It follows the two other tables by
statements that may be repeated. They need nothing that is staged, so what a killed worker left undone is done by the next
one.

Tables of records are the ledger, and results of evaluations. The first column is a record's id. A record is deleted and
inserted again, so that writing it twice leaves one row in every database. The ledger has one row for each run, round and
route, whose id follows from these three.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import pyarrow as pa

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.warehouses.base import KeepsReviews, Part, Target, Warehouse
from airflow_batch_llm.warehouses.dialect import PARAMETER, Upsert
from airflow_batch_llm.warehouses.publication import Table
from airflow_batch_llm.warehouses.statements import PLANNED, Statements
from airflow_batch_llm.warehouses.target import refuse_rules, shape_reviews

#: The columns that a new row of the review table takes from the failures table, besides the source's columns.
TAKEN_OVER = (
    "_llm_outcome",
    "_llm_error_code",
    "_llm_error_message",
    "_llm_run_id",
    "_llm_input_hash",
    "_llm_spec_hash",
    PLANNED,
)


#: A condition on the rows of the review table, which goes by the name that is given.
_Condition = Callable[[str, Target, Statements], str]


def review_table(target: Target) -> str:
    """Return the name of the review table of a target that has one."""
    assert target.review is not None, "the stage keeps a review table"
    return target.review


def review_preparation(target: Target, table: Table | None, statements: Statements) -> list[str]:
    """DDL that gives the review table its shape, then statements that show whether it may be written."""
    dialect = statements.dialect
    shape = shape_reviews(target, None if table is None else table.columns, dialect)
    if table is not None:
        refuse_rules(replace(target, never_null=()), shape, table.rules)  # they are empty at first
    unique = dialect.upsert in (Upsert.ON_CONFLICT, Upsert.ON_DUPLICATE_KEY)
    created = [statements.create(target, shape.table, shape.columns, unique=unique)] if shape.create else []
    return [
        *created,
        *statements.add_columns(shape.table, shape.add),
        *statements.probe(shape.table, shape.columns.names, target.key.names[0]),
    ]


def review_refresh(target: Target, statements: Statements) -> list[str]:
    """Return the statements of one transaction: drop answered rows, drop changed ones, and add dead ones."""
    return [
        _delete(target, _is_answered, statements),
        _delete(target, _has_changed, statements),
        _add(target, statements),
    ]


def reviewed(target: Target, statements: Statements) -> Source:
    """Return the rows that have a reviewer, as a source."""
    q = statements.dialect.quote
    listed = q(*target.review_columns.names)
    table = statements.dialect.table(review_table(target))
    return Source(
        sql=f"SELECT {listed} FROM {table} WHERE {q('reviewed_by')} IS NOT NULL", key=tuple(target.key.names)
    )


def _delete(target: Target, condition: _Condition, statements: Statements) -> str:
    """DELETE of the review table's rows that fulfil a condition."""
    dialect, key = statements.dialect, target.key.names
    table = dialect.table(review_table(target))
    if dialect.upsert is not Upsert.DELETE_KEYS_INSERT:
        return f"DELETE FROM {table} WHERE {condition(table, target, statements)}"
    keys = ", ".join(f"r.{dialect.quote(name)}" for name in key)
    found = f"SELECT {keys} FROM {table} AS r WHERE {condition('r', target, statements)}"
    return f"DELETE FROM {table} WHERE ({dialect.quote(*key)}) IN ({found})"


def _is_answered(review: str, target: Target, statements: Statements) -> str:
    table, planned = statements.dialect.table(target.table), statements.dialect.quote(PLANNED)
    return (
        f"EXISTS (SELECT 1 FROM {table} AS h WHERE {statements.same(target.key.names, 'h', review)} "
        f"AND h.{planned} >= {review}.{planned})"
    )


def _has_changed(review: str, target: Target, statements: Statements) -> str:
    """Return whether no person has answered the row, and its failure is gone, no longer dead, or one of a later plan."""
    q = statements.dialect.quote
    return (
        f"{review}.{q('reviewed_by')} IS NULL AND NOT EXISTS "
        f"(SELECT 1 FROM {statements.dialect.table(target.failures)} AS f "
        f"WHERE {statements.same(target.key.names, 'f', review)} AND {_dead(statements)} "
        f"AND f.{q(PLANNED)} = {review}.{q(PLANNED)})"
    )


def _add(target: Target, statements: Statements) -> str:
    """INSERT of the dead rows that the review table does not have."""
    dialect = statements.dialect
    table = dialect.table(review_table(target))
    names = [*target.failure_origin.names, *TAKEN_OVER]
    chosen = ", ".join(f"f.{dialect.quote(name)}" for name in names)
    return (
        f"INSERT INTO {table} ({dialect.quote(*names)}) SELECT {chosen} FROM {dialect.table(target.failures)} AS f "
        f"WHERE {_dead(statements)} AND NOT EXISTS "
        f"(SELECT 1 FROM {table} AS r WHERE {statements.same(target.key.names, 'r', 'f')})"
    )


def _dead(statements: Statements) -> str:
    return statements.dialect.is_true.format(f"f.{statements.dialect.quote('_llm_dead')}")


def keeps_reviews(warehouse: Warehouse) -> KeepsReviews:
    """Return the warehouse as one that keeps a review table. Raises `InputError` if it does not."""
    if isinstance(warehouse, KeepsReviews):
        return warehouse
    raise InputError(
        f"on_exhausted='review' needs a review table, and {type(warehouse).__name__} keeps none. Set"
        " on_exhausted='record', or use another warehouse for the target. Nothing was sent."
    )


def prepare_tables(warehouse: Warehouse, target: Target) -> None:
    """Create or extend all tables of a target, and probe that writing is allowed."""
    warehouse.prepare(target)
    if target.review is not None:
        keeps_reviews(warehouse).prepare_reviews(target)


def publish_parts(warehouse: Warehouse, target: Target, parts: list[Part]) -> None:
    """Merge the staged parts, and then update the review table from the tables."""
    warehouse.publish(target, parts)
    if target.review is not None:
        keeps_reviews(warehouse).refresh_reviews(target)


def record_id(columns: pa.Schema) -> str:
    """Return the name of the column that identifies a record."""
    return str(columns.names[0])


def record_preparation(
    table: str, columns: pa.Schema, present: Iterable[str] | None, statements: Statements
) -> list[str]:
    """Return the DDL that gives a table these columns. `present`: those that it has. None: there is no table yet."""
    dialect, key = statements.dialect, record_id(columns)
    if present is None:
        unique = dialect.upsert in (Upsert.ON_CONFLICT, Upsert.ON_DUPLICATE_KEY)
        parts = [
            f"{dialect.quote(field.name)} {dialect.column_type(field.type, key=field.name == key)}"
            + (" NOT NULL PRIMARY KEY" if unique and field.name == key else "")
            for field in columns
        ]
        return [f"CREATE TABLE {dialect.table(table)} ({', '.join(parts)})"]
    known = {name.lower() for name in present}
    return statements.add_columns(table, pa.schema([field for field in columns if field.name not in known]))


def record_removal(table: str, columns: pa.Schema, statements: Statements) -> str:
    """Return the DELETE of one record, whose id is the parameter."""
    dialect = statements.dialect
    return f"DELETE FROM {dialect.table(table)} WHERE {dialect.quote(record_id(columns))} = {PARAMETER}"


def record_insertion(table: str, columns: pa.Schema, statements: Statements) -> str:
    """Return the INSERT of one record, whose values are the parameters."""
    dialect = statements.dialect
    marks = ", ".join([PARAMETER] * len(columns))
    return f"INSERT INTO {dialect.table(table)} ({dialect.quote(*columns.names)}) VALUES ({marks})"


_UTC = pa.timestamp("us", tz="UTC")

#: The column that identifies a row of a ledger.
USAGE_KEY = "usage_id"

#: The columns of a ledger: who asked, the question, the outcomes and the cost.
USAGE_COLUMNS = pa.schema(
    [
        (USAGE_KEY, pa.string()),
        ("run_id", pa.string()),
        ("round", pa.int64()),
        ("route", pa.string()),
        ("deployment", pa.string()),
        ("team", pa.string()),
        ("dag_id", pa.string()),
        ("task_id", pa.string()),
        ("dag_run_id", pa.string()),
        ("map_index", pa.int64()),
        ("try_number", pa.int64()),
        ("provider", pa.string()),
        ("model", pa.string()),
        ("way", pa.string()),
        ("target", pa.string()),
        ("spec_hash", pa.string()),
        ("prompt_version", pa.string()),
        *((f"rows_{outcome.value}", pa.int64()) for outcome in Outcome),
        ("requests", pa.int64()),
        ("input_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("cache_write_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("reasoning_tokens", pa.int64()),
        ("usd", pa.float64()),
        ("list_usd", pa.float64()),
        ("saved_usd", pa.float64()),
        ("stray_usd", pa.float64()),
        ("unpriced", pa.int64()),
        ("maybe_twice", pa.int64()),
        ("waited_seconds", pa.float64()),
        ("started_at", _UTC),
        ("ended_at", _UTC),
    ]
)
