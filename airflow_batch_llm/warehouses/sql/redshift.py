"""Register Redshift, which is read and written through its DB-API driver."""

from airflow_batch_llm.warehouses.registration import WarehouseType
from airflow_batch_llm.warehouses.sql.warehouse import opens

WAREHOUSE = WarehouseType(
    name="redshift",
    connection_types=frozenset({"redshift"}),
    open_connection=opens("redshift"),
    requirement="apache-airflow-providers-amazon",
)
