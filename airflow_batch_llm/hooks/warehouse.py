"""From an Airflow connection to a warehouse: the one registered for its type, or the one for any DB-API database."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException
from airflow.sdk import BaseHook, Connection

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.access import find_connection
from airflow_batch_llm.hooks.arguments import check_database_params
from airflow_batch_llm.warehouses import find_type

if TYPE_CHECKING:
    from airflow_batch_llm.warehouses.base import Warehouse
    from airflow_batch_llm.warehouses.registration import WarehouseType

HookParams = Mapping[str, Any]


def warehouse(conn_id: str, hook_params: HookParams | None = None, *, argument: str) -> "Warehouse":
    """The warehouse behind a connection. It looks the connection up; the database is opened when it is first used.

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
    """Return what builds the connection's hook. One of Airflow's providers brings the hook."""

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
