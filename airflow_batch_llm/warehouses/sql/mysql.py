"""MySQL and MariaDB, through their DB-API driver: how their SQL differs, and their registration."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, PARAMETER, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.registration import WarehouseType
from airflow_batch_llm.warehouses.sql.catalogue import InformationSchema, SqlDialect
from airflow_batch_llm.warehouses.sql.warehouse import opens

_TINYINT = 1  # its type code
# A collation that ends in _ai_cs tells a from A, but not from á.
_FOLDS = "CASE WHEN collation_name NOT REGEXP '_bin$|[^i]_cs$' THEN collation_name END"
_UNIQUE = (
    "SELECT index_name, column_name FROM information_schema.statistics WHERE non_unique = 0 "
    f"AND table_schema = COALESCE({PARAMETER}, DATABASE()) AND table_name = {PARAMETER}"
)
_FOREIGN = (
    "SELECT constraint_name, column_name FROM information_schema.key_column_usage "
    f"WHERE referenced_table_name IS NOT NULL AND table_schema = COALESCE({PARAMETER}, DATABASE()) "
    f"AND table_name = {PARAMETER}"
)


def _boolean(column: Sequence[Any]) -> pa.DataType | None:
    """A BOOLEAN is a TINYINT that is shown with one digit."""
    return pa.bool_() if column[1] == _TINYINT and column[3] == 1 else None


DIALECT = SqlDialect(
    name="mysql",
    title="MySQL",
    aliases=frozenset({"mariadb"}),
    types={
        **ANSI_TYPES,
        ColumnKind.STRING: "LONGTEXT CHARACTER SET utf8mb4",
        ColumnKind.REAL: "FLOAT",
        ColumnKind.DOUBLE: "DOUBLE",
        ColumnKind.TIME: "TIME(6)",
        ColumnKind.TIMESTAMP: "DATETIME(6)",
        ColumnKind.TIMESTAMPTZ: "DATETIME(6)",
        ColumnKind.BINARY: "LONGBLOB",
        ColumnKind.UUID: "CHAR(36)",
        ColumnKind.JSON: "JSON",
        ColumnKind.VECTOR: "JSON",
    },
    # The binary collation keeps 'a' and 'A' two keys.
    key_types={
        ColumnKind.STRING: "VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        ColumnKind.BINARY: "VARBINARY(255)",
    },
    own_types={"tinyint(1)": ColumnKind.BOOLEAN, "tinyint(1) unsigned": ColumnKind.BOOLEAN},
    upsert=Upsert.ON_DUPLICATE_KEY,
    max_identifier=64,
    quotes="``",
    placeholder="%s",
    keeps_zone=False,
    pads_text=True,
    # Without a strict mode a key that is too long would be cut off. The other mode pads a CHAR with blanks.
    session="SET time_zone = '+00:00', "
    "sql_mode = CONCAT(REPLACE(@@sql_mode, 'PAD_CHAR_TO_FULL_LENGTH', ''), ',STRICT_ALL_TABLES')",
    typed_null=False,
    catalogue=InformationSchema(
        type_of="column_type",
        current="DATABASE()",
        filled_by="extra",
        folds=_FOLDS,
        unique=_UNIQUE,
        foreign=_FOREIGN,
    ),
    type_codes={
        **dict.fromkeys((_TINYINT, 2, 3, 8, 9, 13), ColumnKind.BIGINT),
        **dict.fromkeys((4, 5), ColumnKind.DOUBLE),
        **dict.fromkeys((0, 246), ColumnKind.DECIMAL),
        7: ColumnKind.TIMESTAMPTZ,  # TIMESTAMP: an instant, shown in the zone of the session, which is UTC
        12: ColumnKind.TIMESTAMP,
        10: ColumnKind.DATE,
        245: ColumnKind.JSON,  # texts and bytes share their codes: the first rows tell which they are
    },
    described_as=_boolean,
)

WAREHOUSE = WarehouseType(
    name="mysql",
    dialect=DIALECT,
    connection_types=frozenset({"mysql"}),
    open_connection=opens(DIALECT),
    requirement="apache-airflow-providers-mysql",
)
