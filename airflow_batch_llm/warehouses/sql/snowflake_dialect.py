"""Say how Snowflake's SQL differs, and what its connector and its catalogue tell of types."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, Upsert
from airflow_batch_llm.warehouses.kind import Kind
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
        Kind.STRING: "VARCHAR",
        Kind.REAL: "FLOAT",
        Kind.DOUBLE: "FLOAT",
        Kind.DECIMAL: "NUMBER({},{})",
        Kind.TIMESTAMP: "TIMESTAMP_NTZ",
        Kind.TIMESTAMPTZ: "TIMESTAMP_TZ",
        Kind.BINARY: "BINARY",
        Kind.UUID: "VARCHAR(36)",
        Kind.JSON: "VARIANT",
        Kind.VECTOR: "VARIANT",
    },
    upsert=Upsert.MERGE,
    from_text={Kind.JSON: "PARSE_JSON({})", Kind.VECTOR: "PARSE_JSON({})"},
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
        _NUMBER: Kind.DECIMAL,
        1: Kind.DOUBLE,
        2: Kind.STRING,
        3: Kind.DATE,
        4: Kind.TIMESTAMP,
        8: Kind.TIMESTAMP,
        **dict.fromkeys((5, 9, 10), Kind.JSON),
        **dict.fromkeys((6, 7), Kind.TIMESTAMPTZ),
        11: Kind.BINARY,
        12: Kind.TIME,
        13: Kind.BOOLEAN,
    },
    described_as=_integer,
)
