"""What the warehouse contract asks of the database under test, besides the adapter itself."""

from collections.abc import Mapping
from typing import Any, Protocol

import pyarrow as pa

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.warehouses.base import Warehouse
from airflow_batch_llm.warehouses.dialect import Dialect


class Database(Protocol):
    """An empty database for one test."""

    #: `module:function` and keyword arguments that open the warehouse in another process.
    recipe: tuple[str, Mapping[str, Any]]
    #: How the driver writes the first parameter of a query ("?", "%s" …).
    placeholder: str
    #: The longest column name that it keeps, in bytes; None where none is too long.
    longest_name: int | None
    #: What a NUL character in a text becomes.
    nul: str
    #: For each type that a key may have: an expression that makes a value of it of the integer column `n`.
    key_types: Mapping[str, str]
    #: The same for each type that can be carried and cannot be a key.
    carried_types: Mapping[str, str]
    #: The rules that its catalogue tells of: "not null", "generated", "unique", "check", "foreign key".
    rules: frozenset[str]
    #: How a computed column is declared, after its type.
    generated: str

    def open(self) -> Warehouse:
        """A new adapter on the database. The contract closes it."""

    def seed(self, table: str, rows: pa.Table) -> None:
        """Create a table with these rows and the database's types for them, by the database's own client.

        The name and the columns' names are to be quoted.
        """

    def make(self, table: str, schema: pa.Schema, rules: Mapping[str, str], *constraints: str) -> None:
        """Create an empty table with the database's types. `rules` stand after the types of these columns."""

    def tables(self) -> set[str]:
        """The names of all tables that exist."""


def definition(
    dialect: Dialect, table: str, schema: pa.Schema, rules: Mapping[str, str], *constraints: str
) -> str:
    """The CREATE TABLE of `Database.make`, for databases that take one."""
    columns = [
        f"{dialect.quote(field.name)} {dialect.column_type(field.type, key=field.name == 'id')} {rules.get(field.name, '')}"
        for field in schema
    ]
    return f"CREATE TABLE {dialect.quote(table)} ({', '.join([*columns, *constraints])})"


def rows_of(database: Database, table: str) -> list[dict[str, Any]]:
    """All rows of a table, read through the adapter, sorted by their first column."""
    warehouse = database.open()
    try:
        found = warehouse.read(Source(table=table)).read_all()
    finally:
        warehouse.close()
    rows: list[dict[str, Any]] = found.to_pylist()
    return sorted(rows, key=lambda row: [str(value) for value in row.values()])
