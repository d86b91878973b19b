"""Register MySQL, which is read and written through its DB-API driver."""

from airflow_batch_llm.warehouses.registration import WarehouseType
from airflow_batch_llm.warehouses.sql.warehouse import opens

WAREHOUSE = WarehouseType(
    name="mysql",
    connection_types=frozenset({"mysql"}),
    open_connection=opens("mysql"),
    requirement="apache-airflow-providers-mysql",
)
