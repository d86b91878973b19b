"""SQL Server, through its DB-API driver: how its SQL differs, and its registration. Its statements are tested as text."""

from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.registration import WarehouseType
from airflow_batch_llm.warehouses.sql.catalogue import InformationSchema, SqlDialect
from airflow_batch_llm.warehouses.sql.warehouse import opens

_PROPERTY = (
    "COLUMNPROPERTY(OBJECT_ID(QUOTENAME(table_schema) + '.' + QUOTENAME(table_name)), column_name, '{}')"
)

DIALECT = SqlDialect(
    name="tsql",
    title="SQL Server",
    aliases=frozenset({"mssql"}),
    types={
        **ANSI_TYPES,
        ColumnKind.STRING: "NVARCHAR(MAX)",
        ColumnKind.INTEGER: "INT",
        ColumnKind.DOUBLE: "FLOAT",
        ColumnKind.BOOLEAN: "BIT",
        ColumnKind.TIMESTAMP: "DATETIME2",
        ColumnKind.TIMESTAMPTZ: "DATETIMEOFFSET",
        ColumnKind.BINARY: "VARBINARY(MAX)",
        ColumnKind.UUID: "UNIQUEIDENTIFIER",
        ColumnKind.JSON: "NVARCHAR(MAX)",
        ColumnKind.VECTOR: "NVARCHAR(MAX)",
    },
    key_types={
        ColumnKind.STRING: "NVARCHAR(255) COLLATE Latin1_General_100_BIN2",
        ColumnKind.BINARY: "VARBINARY(255)",
    },
    own_types={"float": ColumnKind.DOUBLE},
    upsert=Upsert.MERGE,
    merge_hint=" WITH (HOLDLOCK)",
    merge_end=";",
    add_column="ADD",
    max_identifier=128,
    quotes="[]",
    placeholder="%s",
    pads_text=True,
    # The driver writes times as 2026-03-04 10:00:00. As a DATETIME that is 3 April in most languages but English.
    # It writes bytes that are all of ASCII as a text, which no binary column takes.
    quoted_by_driver=True,
    cast_keys=frozenset({ColumnKind.DATE, ColumnKind.TIME, ColumnKind.TIMESTAMP, ColumnKind.TIMESTAMPTZ}),
    is_true="{} = 1",
    joins_sources=False,  # a subquery takes neither ORDER BY nor WITH
    catalogue=InformationSchema(
        current="SCHEMA_NAME()",
        current_catalog="DB_NAME()",
        filled_by=f"CASE WHEN {_PROPERTY.format('IsIdentity')} = 1 OR {_PROPERTY.format('IsComputed')} = 1 "
        "THEN 'GENERATED' END",
        folds="CASE WHEN collation_name LIKE '%[_]CI%' OR collation_name LIKE '%[_]AI%' THEN collation_name END",
    ),
)

WAREHOUSE = WarehouseType(
    name="mssql",
    dialect=DIALECT,
    connection_types=frozenset({"mssql"}),
    open_connection=opens(DIALECT),
    requirement="apache-airflow-providers-microsoft-mssql",
)
