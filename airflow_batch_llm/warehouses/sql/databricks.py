"""Databricks, through its DB-API driver: how its SQL differs, and its registration. Its statements are tested as text."""

from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.registration import WarehouseType
from airflow_batch_llm.warehouses.sql.catalogue import InformationSchema, SqlDialect
from airflow_batch_llm.warehouses.sql.warehouse import opens

DIALECT = SqlDialect(
    name="databricks",
    title="Databricks",
    types={
        **ANSI_TYPES,
        ColumnKind.STRING: "STRING",
        ColumnKind.INTEGER: "INT",
        ColumnKind.REAL: "FLOAT",
        ColumnKind.DOUBLE: "DOUBLE",
        ColumnKind.TIME: "STRING",
        ColumnKind.TIMESTAMP: "TIMESTAMP_NTZ",
        ColumnKind.TIMESTAMPTZ: "TIMESTAMP",
        ColumnKind.BINARY: "BINARY",
        ColumnKind.UUID: "STRING",
        ColumnKind.JSON: "STRING",
        ColumnKind.VECTOR: "ARRAY<DOUBLE>",
    },
    upsert=Upsert.MERGE,
    from_text={ColumnKind.VECTOR: "FROM_JSON({}, 'ARRAY<DOUBLE>')"},
    partitioned="PARTITIONED BY ({})",
    clustered="CLUSTER BY ({})",
    max_identifier=255,
    quotes="``",
    session="SET TIME ZONE 'UTC'",
    catalogue=InformationSchema(type_of="full_data_type", current_catalog="CURRENT_CATALOG()"),
)

WAREHOUSE = WarehouseType(
    name="databricks",
    dialect=DIALECT,
    connection_types=frozenset({"databricks"}),
    open_connection=opens(DIALECT),
    requirement="apache-airflow-providers-databricks",
)
