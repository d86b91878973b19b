"""Say how DuckDB's SQL differs."""

from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, Dialect, Upsert
from airflow_batch_llm.warehouses.kind import Kind

DIALECT = Dialect(
    name="duckdb",
    title="DuckDB",
    types={
        **ANSI_TYPES,
        Kind.STRING: "VARCHAR",
        Kind.REAL: "FLOAT",
        Kind.DOUBLE: "DOUBLE",
        Kind.BINARY: "BLOB",
        Kind.UUID: "UUID",
        Kind.JSON: "JSON",
        Kind.VECTOR: "DOUBLE[]",
    },
    upsert=Upsert.DELETE_INSERT,
    from_text={Kind.JSON: "CAST({} AS JSON)", Kind.UUID: "CAST({} AS UUID)"},
    vector_brackets="",
    max_identifier=65_536,
)
