"""The warehouses by name: where each is registered. A registration is imported on use, and imports no driver."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING

from airflow_batch_llm.errors import TargetError

if TYPE_CHECKING:
    from airflow_batch_llm.warehouses.dialect import Dialect
    from airflow_batch_llm.warehouses.registration import WarehouseType

#: name -> module whose `WAREHOUSE` is the registration. Others register in the entry-point group of the same name.
WAREHOUSES: Mapping[str, str] = MappingProxyType(
    {
        "bigquery": "airflow_batch_llm.warehouses.bigquery.registration",
        "clickhouse": "airflow_batch_llm.warehouses.sql.clickhouse",
        "databricks": "airflow_batch_llm.warehouses.sql.databricks",
        "duckdb": "airflow_batch_llm.warehouses.duckdb.registration",
        "mssql": "airflow_batch_llm.warehouses.sql.mssql",
        "mysql": "airflow_batch_llm.warehouses.sql.mysql",
        "postgres": "airflow_batch_llm.warehouses.postgres.registration",
        "redshift": "airflow_batch_llm.warehouses.sql.redshift",
        "snowflake": "airflow_batch_llm.warehouses.sql.snowflake",
        "sqlite": "airflow_batch_llm.warehouses.sql.sqlite",
    }
)

#: Loggers below which their drivers log statements and rows. BigQuery's are those of Google's other clients.
LOGGERS = ("google", "psycopg", "snowflake", "sqlalchemy")

ENTRY_POINT_GROUP = "airflow_batch_llm.warehouses"


def own_types() -> "Iterator[WarehouseType]":
    """The kinds of warehouse that this package brings."""
    for module in WAREHOUSES.values():
        yield import_module(module).WAREHOUSE


def all_types() -> "Iterator[WarehouseType]":
    """The kinds of warehouse that this package brings, then those of installed plug-ins."""
    yield from own_types()
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        kind: WarehouseType = entry_point.load()
        if kind.name not in WAREHOUSES:
            yield kind


def find_type(conn_type: str) -> "WarehouseType | None":
    """Return the kind of warehouse that connections of this type lead to. Returns None if none is registered."""
    return next((kind for kind in all_types() if conn_type in kind.connection_types), None)


def all_dialects() -> "Iterator[Dialect]":
    """The dialects of SQL that the kinds of warehouse speak."""
    for kind in all_types():
        if kind.dialect is not None:
            yield kind.dialect


def find_dialect(name: str) -> "Dialect":
    """Return the dialect by sqlglot's name, or by the name that Airflow's hooks give it."""
    for dialect in all_dialects():
        if name == dialect.name or name in dialect.aliases:
            return dialect
    known = ", ".join(dialect.name for dialect in all_dialects())
    raise TargetError(f"No SQL dialect {name!r}. There are: {known}.")
