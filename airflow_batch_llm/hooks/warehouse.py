"""Build a warehouse from an Airflow connection: the one registered for its type, or the one for any DB-API database.

In the package's own type `duckdb` the host is the file's path, and the extra holds DuckDB's options.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException
from airflow.sdk import BaseHook, Connection

from airflow_batch_llm.errors import BatchLLMError, InputError
from airflow_batch_llm.hooks.arguments import check_database_params
from airflow_batch_llm.hooks.llm import find_connection
from airflow_batch_llm.warehouses import find_type

if TYPE_CHECKING:
    from airflow_batch_llm.warehouses.base import Warehouse
    from airflow_batch_llm.warehouses.registration import WarehouseType


HookParams = Mapping[str, Any]


def warehouse(conn_id: str, hook_params: HookParams | None = None, *, argument: str) -> "Warehouse":
    """Return the warehouse behind a connection. It looks the connection up; the database is opened when it is first used.

    `hook_params` are what the hook of the connection's type takes (location, impersonation_chain, role …). `argument` is
    the user's argument that names the connection, for the error if it does not exist.
    """
    connection = find_connection(conn_id, argument)
    check_database_params(connection.conn_type or "", hook_params)
    return open_connection(connection, hook_params or {})


def open_connection(connection: Connection, hook_params: HookParams) -> "Warehouse":
    """Build the warehouse of a connection by its type's registration, or by the hook that Airflow knows for it."""
    from airflow_batch_llm.warehouses.registration import AirflowConnection
    from airflow_batch_llm.warehouses.sql.warehouse import opens

    kind = find_type(connection.conn_type or "")
    open_it = kind.open_connection if kind and kind.open_connection else opens()
    return open_it(
        AirflowConnection(
            conn_id=connection.conn_id,
            conn_type=connection.conn_type or "",
            hook=_hook(connection, kind),
            hook_params=hook_params,
            host=connection.host,
            port=connection.port,
            schema=connection.schema,
            login=connection.login,
            password=connection.password,
            extra=connection.extra_dejson,
        )
    )


def _hook(connection: Connection, kind: "WarehouseType | None") -> Callable[..., Any]:
    """Return a function that builds the connection's hook, which is in one of Airflow's providers."""

    def build(**params: Any) -> Any:
        try:
            if not (kind and kind.hook):
                return BaseHook.get_hook(connection.conn_id, params)
            module, _, name = kind.hook.rpartition(".")
            hook = getattr(import_module(module), name)
            return hook(**{hook.conn_name_attr: connection.conn_id, **params})
        except ImportError as error:
            missing = f"needs the Python package {error.name}, which cannot be imported"
        except AirflowException as error:
            if "Unknown hook type" not in str(error):
                raise
            missing = "needs an Airflow provider that is not installed"
        wanted = kind.requirement if kind else ""
        advice = f"Run: pip install '{wanted}'" if wanted else "Install it, or correct the type."
        raise InputError(
            f"The connection {connection.conn_id!r} of type {connection.conn_type!r} {missing}. {advice}"
        )

    return build


class DuckDBHook(BaseHook):
    """A DuckDB file that all workers of a run see.

    Three fields of the connection's extra are the package's: `staging` (a folder for answers that are not merged yet),
    `memory_limit` and `lock_wait_seconds`. All others are DuckDB's configuration.
    """

    conn_name_attr = "duckdb_conn_id"
    default_conn_name = "duckdb_default"
    conn_type = "duckdb"
    hook_name = "DuckDB"

    def __init__(self, duckdb_conn_id: str = default_conn_name, **options: Any) -> None:
        super().__init__()
        self.duckdb_conn_id = duckdb_conn_id
        self._options = options

    def get_conn(self) -> "Warehouse":
        """Return the file as a warehouse. It is opened when it is first used."""
        return open_connection(self.get_connection(self.duckdb_conn_id), self._options)

    def test_connection(self) -> tuple[bool, str]:
        """Open the file and run a query."""
        from airflow_batch_llm.core.settings import Source

        try:
            warehouse = self.get_conn()
            try:
                warehouse.read(Source(sql="SELECT 1 AS n")).read_all()
            finally:
                warehouse.close()
        except BatchLLMError as error:
            return False, str(error)
        return True, "The file can be read."

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the form in Airflow 3.1. Later releases take it from the provider's description."""
        return {
            "hidden_fields": ["schema", "port", "login", "password"],
            "relabeling": {"host": "Path of the file"},
            "placeholders": {"host": "/data/warehouse.duckdb"},
        }
