"""Connections of the type `duckdb`: the host is the file's path, the extra holds DuckDB's options."""

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.hooks.warehouse import open_connection

if TYPE_CHECKING:
    from airflow_batch_llm.warehouses.base import Warehouse


class DuckDBHook(BaseHook):
    """A DuckDB file that all workers of a run see.

    Of the connection's extra, `staging` (a folder for answers that are not merged yet), `memory_limit` and
    `lock_wait_seconds` are ours; all else is DuckDB's configuration.
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
        """The file as a warehouse. It is opened when it is first used."""
        return open_connection(self.get_connection(self.duckdb_conn_id), self._options)

    def test_connection(self) -> tuple[bool, str]:
        """Open the file and ask it something."""
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
        """The form in Airflow 3.1; later ones take it from the provider's description."""
        return {
            "hidden_fields": ["schema", "port", "login", "password"],
            "relabeling": {"host": "Path of the file"},
            "placeholders": {"host": "/data/warehouse.duckdb"},
        }
