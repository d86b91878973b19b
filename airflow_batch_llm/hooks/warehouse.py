"""From an Airflow connection to a warehouse: the adapter of its type, or the one for any DB-API database."""

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException
from airflow.sdk import BaseHook, Connection

from airflow_batch_llm.errors import InputError, MissingExtra
from airflow_batch_llm.hooks.access import find_connection
from airflow_batch_llm.hooks.arguments import check_database_params
from airflow_batch_llm.hooks.duckdb import DuckDBHook

if TYPE_CHECKING:
    from airflow_batch_llm.warehouses.base import Warehouse

HookParams = Mapping[str, Any]


def warehouse(conn_id: str, hook_params: HookParams | None = None, *, argument: str) -> "Warehouse":
    """The warehouse behind a connection. It looks the connection up; the database is opened when it is first used.

    `hook_params` are what the hook of the connection's type takes (location, impersonation_chain, role …). `argument` is
    the user's argument that names the connection, for the error if it does not exist.
    """
    connection = find_connection(conn_id, argument)
    check_database_params(connection.conn_type or "", hook_params)
    return _TYPES.get(connection.conn_type or "", _any_database)(connection, hook_params or {})


def _duckdb(connection: Connection, hook_params: HookParams) -> "Warehouse":
    return DuckDBHook(connection.conn_id, **hook_params).get_conn()


def _postgres(connection: Connection, hook_params: HookParams) -> "Warehouse":
    from airflow_batch_llm.warehouses.postgres.warehouse import PostgresWarehouse

    try:
        from airflow.providers.postgres.hooks.postgres import PostgresHook
    except ModuleNotFoundError as error:
        raise MissingExtra(f"The connection {connection.conn_id!r}", "postgres", error) from error
    hook = PostgresHook(connection.conn_id, **hook_params)

    def connect() -> Any:
        import psycopg

        return psycopg.connect(**_postgres_arguments(connection, hook))

    servers = {"host": connection.host, "port": connection.port, **connection.extra_dejson}
    return PostgresWarehouse(
        connect,
        called=f"the connection {connection.conn_id!r}",
        servers={name: servers.get(name) for name in ("host", "hostaddr", "port")},
    )


def _postgres_arguments(connection: Connection, hook: Any) -> dict[str, Any]:
    """Return the hook's connection arguments.

    Its own connection may be of psycopg 2, which returns rows in another shape.
    """
    extra = connection.extra_dejson
    user, password, port = connection.login, connection.password, connection.port
    if extra.get("iam"):
        user, password, port = hook.get_iam_token(connection)
    arguments = {
        "host": connection.host,
        "user": user,
        "password": password,
        "port": port,
        "dbname": hook.database or connection.schema,
        "options": hook.options,
        **{name: value for name, value in extra.items() if name not in hook.ignored_extra_options},
    }
    return {name: value for name, value in arguments.items() if value is not None}


def _bigquery(connection: Connection, hook_params: HookParams) -> "Warehouse":
    from airflow_batch_llm.warehouses.bigquery.warehouse import BigQuerySettings, BigQueryWarehouse

    try:
        from airflow.providers.google.cloud.hooks.bigquery import BigQueryHook
    except ModuleNotFoundError as error:
        raise MissingExtra(f"The connection {connection.conn_id!r}", "google", error) from error
    params = dict(hook_params)
    project, dataset = params.pop("project", None), params.pop("dataset", None)
    hook = BigQueryHook(gcp_conn_id=connection.conn_id, use_legacy_sql=False, **params)

    def storage() -> Any:
        from google.cloud.bigquery_storage_v1 import BigQueryReadClient

        client_class: Any = BigQueryReadClient  # untyped
        return client_class(credentials=hook.get_credentials())

    return BigQueryWarehouse(
        BigQuerySettings(
            client=lambda: hook.get_client(project or hook.project_id, params.get("location")),
            # Google's variable for an emulator leads the REST client there, and no other.
            storage=None if os.environ.get("BIGQUERY_EMULATOR_HOST") else storage,
            dataset=dataset,
            location=params.get("location"),
        )
    )


def _sqlite(connection: Connection, hook_params: HookParams) -> "Warehouse":
    from airflow_batch_llm.warehouses.sql.sqlite import SQLiteWarehouse

    hook = _hook(connection)
    return SQLiteWarehouse(hook.get_conn, **hook_params)


def _snowflake(connection: Connection, hook_params: HookParams) -> "Warehouse":
    from airflow_batch_llm.warehouses.sql.snowflake import SnowflakeWarehouse

    hook = _hook(connection, hook_params)
    asked = {**connection.extra_dejson, **hook_params}
    uri = f"snowflake://{asked.get('account', '')}/{asked.get('database', '')}".rstrip("/")
    return SnowflakeWarehouse(hook.get_conn, asset_uri=uri)


def _any_database(connection: Connection, hook_params: HookParams) -> "Warehouse":
    from airflow.providers.common.sql.hooks.sql import DbApiHook

    from airflow_batch_llm.warehouses.sql.warehouse import sql_warehouse

    hook = _hook(connection, hook_params)
    if not isinstance(hook, DbApiHook):
        raise InputError(
            f"The connection {connection.conn_id!r} of type {connection.conn_type!r} is not one of a database."
        )
    port = f":{connection.port}" if connection.port else ""
    uri = f"{connection.conn_type}://{connection.host or ''}{port}/{connection.schema or ''}".rstrip("/")
    return sql_warehouse(hook.get_conn, hook.dialect_name, asset_uri=uri)


def _hook(connection: Connection, hook_params: HookParams | None = None) -> Any:
    """Return the hook of the connection's type, which one of Airflow's providers brings."""
    try:
        return BaseHook.get_hook(connection.conn_id, dict(hook_params or {}))
    except ImportError as error:
        missing = f"needs the Python package {error.name}, which cannot be imported"
    except AirflowException as error:
        if "Unknown hook type" not in str(error):
            raise
        missing = "needs an Airflow provider that is not installed"
    package = _PACKAGES.get(connection.conn_type or "")
    advice = f"Run: pip install {package}" if package else "Install it, or correct the type."
    raise InputError(
        f"The connection {connection.conn_id!r} of type {connection.conn_type!r} {missing}. {advice}"
    )


#: Types of connections by the package of Airflow's provider that opens them.
_PACKAGES: Mapping[str, str] = MappingProxyType(
    {
        "databricks": "apache-airflow-providers-databricks",
        "hana": "apache-airflow-providers-sap-hana",
        "mssql": "apache-airflow-providers-microsoft-mssql",
        "mysql": "apache-airflow-providers-mysql",
        "oracle": "apache-airflow-providers-oracle",
        "presto": "apache-airflow-providers-presto",
        "redshift": "apache-airflow-providers-amazon",
        "snowflake": "apache-airflow-providers-snowflake",
        "sqlite": "apache-airflow-providers-sqlite",
        "trino": "apache-airflow-providers-trino",
        "vertica": "apache-airflow-providers-vertica",
    }
)

_TYPES: Mapping[str, Callable[[Connection, HookParams], "Warehouse"]] = MappingProxyType(
    {
        "duckdb": _duckdb,
        "gcpbigquery": _bigquery,
        "google_cloud_platform": _bigquery,
        "postgres": _postgres,
        "snowflake": _snowflake,
        "sqlite": _sqlite,
    }
)
