"""Say how Snowflake's SQL differs, and what its connector and its catalogue tell of types."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.sql.catalogue import InformationSchema, SqlDialect

_NUMBER = 0  # its type code
_TYPE_OF = "CASE data_type WHEN 'NUMBER' THEN 'NUMBER(' || numeric_precision || ',' || numeric_scale || ')' ELSE data_type END"


def _integer(column: Sequence[Any]) -> pa.DataType | None:
    """NUMBER(38, 0) is an integer: Snowflake has no other."""
    return pa.int64() if (column[1], column[4], column[5]) == (_NUMBER, 38, 0) else None


DIALECT = SqlDialect(
    name="snowflake",
    title="Snowflake",
    types={
        **ANSI_TYPES,
        ColumnKind.STRING: "VARCHAR",
        ColumnKind.REAL: "FLOAT",
        ColumnKind.DOUBLE: "FLOAT",
        ColumnKind.DECIMAL: "NUMBER({},{})",
        ColumnKind.TIMESTAMP: "TIMESTAMP_NTZ",
        ColumnKind.TIMESTAMPTZ: "TIMESTAMP_TZ",
        ColumnKind.BINARY: "BINARY",
        ColumnKind.UUID: "VARCHAR(36)",
        ColumnKind.JSON: "VARIANT",
        ColumnKind.VECTOR: "VARIANT",
    },
    upsert=Upsert.MERGE,
    from_text={ColumnKind.JSON: "PARSE_JSON({})", ColumnKind.VECTOR: "PARSE_JSON({})"},
    clustered="CLUSTER BY ({})",
    max_identifier=255,
    placeholder="%s",
    upper_case=True,
    catalogue=InformationSchema(
        type_of=_TYPE_OF,
        current_catalog="CURRENT_DATABASE()",
        filled_by="CASE WHEN is_identity = 'YES' THEN 'AUTO_INCREMENT' END",
    ),
    type_codes={
        _NUMBER: ColumnKind.DECIMAL,
        1: ColumnKind.DOUBLE,
        2: ColumnKind.STRING,
        3: ColumnKind.DATE,
        4: ColumnKind.TIMESTAMP,
        8: ColumnKind.TIMESTAMP,
        **dict.fromkeys((5, 9, 10), ColumnKind.JSON),
        **dict.fromkeys((6, 7), ColumnKind.TIMESTAMPTZ),
        11: ColumnKind.BINARY,
        12: ColumnKind.TIME,
        13: ColumnKind.BOOLEAN,
    },
    described_as=_integer,
)
