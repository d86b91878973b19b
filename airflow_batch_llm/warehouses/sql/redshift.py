"""Redshift, through its DB-API driver: how its SQL differs, and its registration. Its statements are tested as text."""

from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.registration import WarehouseType
from airflow_batch_llm.warehouses.sql.catalogue import InformationSchema, SqlDialect
from airflow_batch_llm.warehouses.sql.warehouse import opens

DIALECT = SqlDialect(
    name="redshift",
    title="Redshift",
    types={
        **ANSI_TYPES,
        ColumnKind.STRING: "VARCHAR(65535)",
        ColumnKind.BINARY: "VARBYTE(1000000)",
        ColumnKind.UUID: "VARCHAR(36)",
        ColumnKind.JSON: "VARCHAR(65535)",
        ColumnKind.VECTOR: "VARCHAR(65535)",
    },
    # Its MERGE takes no condition, so it could not leave a newer row alone.
    upsert=Upsert.UPDATE_INSERT,
    clustered="COMPOUND SORTKEY ({})",
    max_identifier=127,
    placeholder="%s",
    session="SET timezone TO 'UTC'",
    keeps_nul=False,
    pads_text=True,
    catalogue=InformationSchema(current_catalog="CURRENT_DATABASE()"),
    # The object ids of PostgreSQL's types.
    type_codes={
        16: ColumnKind.BOOLEAN,
        **dict.fromkeys((20, 21, 23), ColumnKind.BIGINT),
        **dict.fromkeys((700, 701), ColumnKind.DOUBLE),
        1700: ColumnKind.DECIMAL,
        1082: ColumnKind.DATE,
        1083: ColumnKind.TIME,
        1114: ColumnKind.TIMESTAMP,
        1184: ColumnKind.TIMESTAMPTZ,
        **dict.fromkeys((25, 1042, 1043), ColumnKind.STRING),
    },
)

WAREHOUSE = WarehouseType(
    name="redshift",
    dialect=DIALECT,
    connection_types=frozenset({"redshift"}),
    open_connection=opens(DIALECT),
    requirement="apache-airflow-providers-amazon",
)
