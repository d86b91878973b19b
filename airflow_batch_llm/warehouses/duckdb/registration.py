"""Say how DuckDB's SQL differs, and register it: a connection's host, or a spec's field, is the path of the file."""

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.warehouses.base import Warehouse
from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, Dialect, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.registration import AirflowConnection, SpecFile, UriForm, WarehouseType

_TYPES = {
    **ANSI_TYPES,
    ColumnKind.STRING: "VARCHAR",
    ColumnKind.REAL: "FLOAT",
    ColumnKind.DOUBLE: "DOUBLE",
    ColumnKind.BINARY: "BLOB",
    ColumnKind.UUID: "UUID",
    ColumnKind.JSON: "JSON",
    ColumnKind.VECTOR: "DOUBLE[]",
}

DIALECT = Dialect(
    name="duckdb",
    title="DuckDB",
    types=_TYPES,
    own_types={
        **{name.lower(): kind for kind, name in _TYPES.items()},
        "timestamp with time zone": ColumnKind.TIMESTAMPTZ,
    },
    upsert=Upsert.DELETE_INSERT,
    from_text={ColumnKind.JSON: "CAST({} AS JSON)", ColumnKind.UUID: "CAST({} AS UUID)"},
    vector_brackets="",
    max_identifier=65_536,
)


_OWN_OPTIONS = ("staging", "memory_limit", "lock_wait_seconds")


def _open_connection(connection: AirflowConnection) -> Warehouse:
    from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse

    if not connection.host:
        raise InputError(f"The connection {connection.conn_id!r} names no file. Its host is the file's path.")
    options = {**connection.extra, **connection.hook_params}
    own = {name: options.pop(name, None) for name in _OWN_OPTIONS}
    given = {name: value for name, value in own.items() if value not in (None, "")}
    return DuckDBWarehouse(connection.host, **given, options=options)


def _open_section(path: str, file: SpecFile) -> Warehouse:
    from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse

    return DuckDBWarehouse(file.path(path))


WAREHOUSE = WarehouseType(
    name="duckdb",
    dialect=DIALECT,
    uri_scheme="file",
    uri_form=UriForm.FILE,
    connection_types=frozenset({"duckdb"}),
    open_connection=_open_connection,
    hook_params=frozenset(
        {
            "lock_wait_seconds", "max_temp_directory_size", "memory_limit", "preserve_insertion_order", "staging",
            "temp_directory", "threads",
        }
    ),
    section=str,
    open_section=_open_section,
)  # fmt: skip
