"""Register Databricks, which is read and written through its DB-API driver."""

from airflow_batch_llm.warehouses.registration import WarehouseType
from airflow_batch_llm.warehouses.sql.warehouse import opens

WAREHOUSE = WarehouseType(
    name="databricks",
    connection_types=frozenset({"databricks"}),
    open_connection=opens("databricks"),
    requirement="apache-airflow-providers-databricks",
)
