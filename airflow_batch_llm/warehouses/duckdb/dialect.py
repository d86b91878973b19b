"""Say how DuckDB's SQL differs."""

from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, Dialect, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind

DIALECT = Dialect(
    name="duckdb",
    title="DuckDB",
    types={
        **ANSI_TYPES,
        ColumnKind.STRING: "VARCHAR",
        ColumnKind.REAL: "FLOAT",
        ColumnKind.DOUBLE: "DOUBLE",
        ColumnKind.BINARY: "BLOB",
        ColumnKind.UUID: "UUID",
        ColumnKind.JSON: "JSON",
        ColumnKind.VECTOR: "DOUBLE[]",
    },
    upsert=Upsert.DELETE_INSERT,
    from_text={ColumnKind.JSON: "CAST({} AS JSON)", ColumnKind.UUID: "CAST({} AS UUID)"},
    vector_brackets="",
    max_identifier=65_536,
)
