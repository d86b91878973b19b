"""Tables of records in SQL: a ledger, results of evaluations. Pure text from quoted names.

The first column is a record's id. A record is deleted and inserted again, so that writing it twice leaves one row in every
database.
"""

from collections.abc import Iterable

import pyarrow as pa

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
