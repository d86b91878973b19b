"""Say how PostgreSQL's SQL differs, and register it: what Airflow's hook would connect with is given to psycopg 3."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from airflow_batch_llm.warehouses.base import Warehouse
from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, Dialect, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.registration import AirflowConnection, SpecFile, WarehouseType

_TYPES = {
    **ANSI_TYPES,
    ColumnKind.STRING: "TEXT",
    ColumnKind.BINARY: "BYTEA",
    ColumnKind.UUID: "UUID",
    ColumnKind.JSON: "JSONB",
    ColumnKind.VECTOR: "DOUBLE PRECISION[]",
}

DIALECT = Dialect(
    name="postgres",
    title="PostgreSQL",
    aliases=frozenset({"postgresql"}),
    types=_TYPES,
    own_types={
        **{name.lower(): kind for kind, name in _TYPES.items()},
        "timestamp with time zone": ColumnKind.TIMESTAMPTZ,
        "timestamp without time zone": ColumnKind.TIMESTAMP,
        "citext": ColumnKind.STRING,
        '"char"': ColumnKind.STRING,
    },
    upsert=Upsert.ON_CONFLICT,
    from_text={ColumnKind.JSON: "CAST({} AS JSONB)", ColumnKind.VECTOR: "CAST({} AS DOUBLE PRECISION[])"},
    vector_brackets="{}",
    # Not a cast, which cuts the blanks off a CHAR.
    text_of="CONCAT({}, '')",
    max_identifier=63,
    placeholder="${}",
    keeps_nul=False,
)


class PostgresSection(BaseModel):
    """A PostgreSQL database."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dsn_env: str
    """Environment variable that holds its DSN or URI."""


def _open_connection(connection: AirflowConnection) -> Warehouse:
    from airflow_batch_llm.warehouses.postgres.warehouse import PostgresWarehouse

    hook = connection.hook(**connection.hook_params)

    def connect() -> Any:
        import psycopg

        return psycopg.connect(**_arguments(connection, hook))

    servers = {"host": connection.host, "port": connection.port, **connection.extra}
    return PostgresWarehouse(
        connect,
        called=connection.called,
        servers={name: servers.get(name) for name in ("host", "hostaddr", "port")},
    )


def _arguments(connection: AirflowConnection, hook: Any) -> dict[str, Any]:
    """Return the hook's connection arguments. Its own connection may be of psycopg 2, with rows in another shape."""
    user, password, port = connection.login, connection.password, connection.port
    if connection.extra.get("iam"):
        user, password, port = hook.get_iam_token(hook.get_connection(connection.conn_id))
    arguments = {
        "host": connection.host,
        "user": user,
        "password": password,
        "port": port,
        "dbname": hook.database or connection.schema,
        "options": hook.options,
        **{name: value for name, value in connection.extra.items() if name not in hook.ignored_extra_options},
    }
    return {name: value for name, value in arguments.items() if value is not None}


def _open_section(section: PostgresSection, file: SpecFile) -> Warehouse:
    from airflow_batch_llm.warehouses.postgres.warehouse import PostgresWarehouse

    return PostgresWarehouse(file.secret(section.dsn_env))


WAREHOUSE = WarehouseType(
    name="postgres",
    dialect=DIALECT,
    connection_types=frozenset({"postgres"}),
    open_connection=_open_connection,
    requirement="airflow-batch-llm[postgres]",
    hook="airflow.providers.postgres.hooks.postgres.PostgresHook",
    hook_params=frozenset({"database", "enable_log_db_messages", "options"}),
    section=PostgresSection,
    open_section=_open_section,
)
