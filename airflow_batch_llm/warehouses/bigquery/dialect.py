"""Say how BigQuery's SQL differs."""

from airflow_batch_llm.warehouses.dialect import Dialect, Upsert
from airflow_batch_llm.warehouses.kind import Kind

DIALECT = Dialect(
    name="bigquery",
    title="BigQuery",
    types={
        Kind.STRING: "STRING",
        Kind.SMALLINT: "INT64",
        Kind.INTEGER: "INT64",
        Kind.BIGINT: "INT64",
        Kind.REAL: "FLOAT64",
        Kind.DOUBLE: "FLOAT64",
        Kind.DECIMAL: "BIGNUMERIC",
        Kind.BOOLEAN: "BOOL",
        Kind.DATE: "DATE",
        Kind.TIME: "TIME",
        Kind.TIMESTAMP: "DATETIME",
        Kind.TIMESTAMPTZ: "TIMESTAMP",
        Kind.BINARY: "BYTES",
        Kind.UUID: "STRING",
        Kind.JSON: "JSON",
        Kind.VECTOR: "ARRAY<FLOAT64>",
    },
    upsert=Upsert.MERGE,
    decimal_digits=76,
    numeric="NUMERIC",
    vector_brackets="",  # a load job takes a vector as the list that it is
    max_identifier=300,
    backslashes=True,
)
