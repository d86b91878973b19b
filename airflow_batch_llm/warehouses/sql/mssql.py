"""Register SQL Server, which is read and written through its DB-API driver."""

from airflow_batch_llm.warehouses.registration import WarehouseType
from airflow_batch_llm.warehouses.sql.warehouse import opens

WAREHOUSE = WarehouseType(
    name="mssql",
    connection_types=frozenset({"mssql"}),
    open_connection=opens("tsql"),
    requirement="apache-airflow-providers-microsoft-mssql",
)
