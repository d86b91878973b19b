"""Tables of records in SQL: the ledger, and results of evaluations. Pure text from quoted names.

The first column is a record's id. A record is deleted and inserted again, so that writing it twice leaves one row in every
database. The ledger has one row for each run, round and route, whose id follows from these three.
"""

from collections.abc import Iterable

import pyarrow as pa

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.warehouses.dialect import PARAMETER, Upsert
from airflow_batch_llm.warehouses.statements import Statements


def record_id(columns: pa.Schema) -> str:
    """Return the name of the column that tells records apart."""
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

#: The column that tells the rows of a ledger apart.
USAGE_KEY = "usage_id"

#: The columns of a ledger: who asked, what was asked, what became of it, and what it cost.
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
