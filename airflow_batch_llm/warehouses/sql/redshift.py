"""Redshift, through its DB-API driver: how its SQL differs, and its registration. Its statements are tested as text."""

from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, Upsert
from airflow_batch_llm.warehouses.kind import Kind
from airflow_batch_llm.warehouses.registration import WarehouseType
from airflow_batch_llm.warehouses.sql.catalogue import InformationSchema, SqlDialect
from airflow_batch_llm.warehouses.sql.warehouse import opens

DIALECT = SqlDialect(
    name="redshift",
    title="Redshift",
    types={
        **ANSI_TYPES,
        Kind.STRING: "VARCHAR(65535)",
        Kind.BINARY: "VARBYTE(1000000)",
        Kind.UUID: "VARCHAR(36)",
        Kind.JSON: "VARCHAR(65535)",
        Kind.VECTOR: "VARCHAR(65535)",
    },
    # Its MERGE takes no condition, so it could not leave a newer row alone.
    upsert=Upsert.UPDATE_INSERT,
    clustered="COMPOUND SORTKEY ({})",
    max_identifier=127,
    placeholder="%s",
    keeps_nul=False,
    pads_text=True,
    catalogue=InformationSchema(current_catalog="CURRENT_DATABASE()"),
    # The object ids of PostgreSQL's types.
    type_codes={
        16: Kind.BOOLEAN,
        **dict.fromkeys((20, 21, 23), Kind.BIGINT),
        **dict.fromkeys((700, 701), Kind.DOUBLE),
        1700: Kind.DECIMAL,
        1082: Kind.DATE,
        1083: Kind.TIME,
        1114: Kind.TIMESTAMP,
        1184: Kind.TIMESTAMPTZ,
        **dict.fromkeys((25, 1042, 1043), Kind.STRING),
    },
)

WAREHOUSE = WarehouseType(
    name="redshift",
    dialect=DIALECT,
    connection_types=frozenset({"redshift"}),
    open_connection=opens(DIALECT),
    requirement="apache-airflow-providers-amazon",
)
