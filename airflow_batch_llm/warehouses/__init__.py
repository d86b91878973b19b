"""Find a warehouse's registration by name, and the URIs of its tables for Airflow's assets and OpenLineage.

A registration is imported on use, and imports no driver.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses.registration import UriForm

if TYPE_CHECKING:
    from airflow_batch_llm.warehouses.dialect import Dialect
    from airflow_batch_llm.warehouses.registration import WarehouseType

#: name -> module whose `WAREHOUSE` is the registration. Others register in the entry-point group of the same name.
#: A look-up imports them in this order. Those in `sql` come last, because each of them imports the whole DB-API path.
WAREHOUSES: Mapping[str, str] = MappingProxyType(
    {
        "bigquery": "airflow_batch_llm.warehouses.bigquery.registration",
        "duckdb": "airflow_batch_llm.warehouses.duckdb.registration",
        "postgres": "airflow_batch_llm.warehouses.postgres.registration",
        "clickhouse": "airflow_batch_llm.warehouses.sql.clickhouse",
        "databricks": "airflow_batch_llm.warehouses.sql.databricks",
        "mssql": "airflow_batch_llm.warehouses.sql.mssql",
        "mysql": "airflow_batch_llm.warehouses.sql.mysql",
        "redshift": "airflow_batch_llm.warehouses.sql.redshift",
        "snowflake": "airflow_batch_llm.warehouses.sql.snowflake",
        "sqlite": "airflow_batch_llm.warehouses.sql.sqlite",
    }
)

#: Loggers below which their drivers log statements and rows. BigQuery's are those of Google's other clients.
LOGGERS = ("google", "psycopg", "snowflake", "sqlalchemy")

ENTRY_POINT_GROUP = "airflow_batch_llm.warehouses"


def own_types() -> "Iterator[WarehouseType]":
    """Return the kinds of warehouse that this package brings."""
    for module in WAREHOUSES.values():
        yield import_module(module).WAREHOUSE


def all_types() -> "Iterator[WarehouseType]":
    """Return the kinds of warehouse that this package brings, then those of installed plug-ins."""
    yield from own_types()
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        kind: WarehouseType = entry_point.load()
        if kind.name not in WAREHOUSES:
            yield kind


def find_type(conn_type: str) -> "WarehouseType | None":
    """Return the kind of warehouse that connections of this type lead to. Returns None if none is registered."""
    return next((kind for kind in all_types() if conn_type in kind.connection_types), None)


def all_dialects() -> "Iterator[Dialect]":
    """Return the dialects of SQL that the kinds of warehouse speak."""
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


def table_uri(database_uri: str, table: str) -> str:
    """Return the URI of a table for Airflow's assets: each part of its name is a segment below its database."""
    base = database_uri.rstrip("/")
    form = _form(base)
    # A name of three parts begins with a database, which then takes the place of the URI's own.
    has_database = form is UriForm.PROJECT or (form is UriForm.SERVER and urlsplit(base).path)
    if table.count(".") == 2 and has_database:
        base = base.rpartition("/")[0]
    return f"{base}/{table.replace('.', '/')}"


def dataset(uri: str) -> tuple[str, str]:
    """Return a table's URI as OpenLineage's namespace and name."""
    parts = urlsplit(uri)
    name = parts.path.lstrip("/").replace("/", ".")
    match _form(uri):
        case UriForm.FILE:
            return parts.scheme, parts.path
        case UriForm.PROJECT:
            return parts.scheme, f"{parts.netloc}.{name}"
        case UriForm.SERVER:
            return f"{parts.scheme}://{parts.netloc}", name


def tables_of(sql: str, database_uri: str = "") -> Sequence[str]:
    """Return the tables that a SELECT reads, by their names in it. Returns none if it cannot be parsed."""
    # This import loads pyarrow, and Dags import this module.
    from airflow_batch_llm.warehouses.dialect import referenced

    kind = _kind(database_uri)
    dialect = kind.dialect.name if kind and kind.dialect else None
    return sorted({".".join(parts) for parts in referenced(sql, dialect)})


def _form(uri: str) -> UriForm:
    kind = _kind(uri)
    return kind.uri_form if kind else UriForm.SERVER


def _kind(uri: str) -> "WarehouseType | None":
    scheme = urlsplit(uri).scheme
    return next((kind for kind in all_types() if scheme == (kind.uri_scheme or kind.name)), None)
