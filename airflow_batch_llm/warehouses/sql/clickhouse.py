"""ClickHouse, through its DB-API driver: how its SQL differs, and its registration.

It has no transactions. A publish that is killed may have deleted rows that it has not yet inserted again; they are
staged still, and the next publish of the same parts inserts them.
"""

from airflow_batch_llm.warehouses.dialect import Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.registration import WarehouseType
from airflow_batch_llm.warehouses.sql.catalogue import InformationSchema, SqlDialect
from airflow_batch_llm.warehouses.sql.warehouse import opens

#: A key is never NULL, since a table may be sorted by it.
_KEY_TYPES = {
    ColumnKind.STRING: "String",
    ColumnKind.SMALLINT: "Int16",
    ColumnKind.INTEGER: "Int32",
    ColumnKind.BIGINT: "Int64",
    ColumnKind.REAL: "Float32",
    ColumnKind.DOUBLE: "Float64",
    ColumnKind.DECIMAL: "Decimal({}, {})",
    ColumnKind.BOOLEAN: "Bool",
    ColumnKind.DATE: "Date32",
    ColumnKind.TIME: "String",
    ColumnKind.TIMESTAMP: "DateTime64(6)",
    ColumnKind.TIMESTAMPTZ: "DateTime64(6, 'UTC')",
    ColumnKind.BINARY: "String",
    ColumnKind.UUID: "UUID",
    ColumnKind.JSON: "String",
    ColumnKind.VECTOR: "String",
}

DIALECT = SqlDialect(
    name="clickhouse",
    title="ClickHouse",
    types={kind: f"Nullable({name})" for kind, name in _KEY_TYPES.items()},
    key_types=_KEY_TYPES,
    own_types={
        "datetime64": ColumnKind.TIMESTAMP,
        "datetime64(6, 'utc')": ColumnKind.TIMESTAMPTZ,
        "nullable(datetime64(6, 'utc'))": ColumnKind.TIMESTAMPTZ,
    },
    upsert=Upsert.DELETE_KEYS_INSERT,
    max_identifier=206,  # a column's name is part of a file's name
    placeholder="%s",
    session="SET session_timezone = 'UTC', join_use_nulls = 1",
    backslashes=True,
    cast_keys=frozenset(ColumnKind),
    joins_sources=False,  # q.* calls a column q.id if a joined table has an id, too
    catalogue=InformationSchema(current="currentDatabase()", default_of="nullIf(column_default, '')"),
)

WAREHOUSE = WarehouseType(
    name="clickhouse",
    dialect=DIALECT,
    connection_types=frozenset({"clickhouse"}),
    open_connection=opens(DIALECT),
)
