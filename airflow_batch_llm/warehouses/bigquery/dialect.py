"""Say how BigQuery's SQL differs."""

from airflow_batch_llm.warehouses.dialect import Dialect, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind

DIALECT = Dialect(
    name="bigquery",
    title="BigQuery",
    types={
        ColumnKind.STRING: "STRING",
        ColumnKind.SMALLINT: "INT64",
        ColumnKind.INTEGER: "INT64",
        ColumnKind.BIGINT: "INT64",
        ColumnKind.REAL: "FLOAT64",
        ColumnKind.DOUBLE: "FLOAT64",
        ColumnKind.DECIMAL: "BIGNUMERIC",
        ColumnKind.BOOLEAN: "BOOL",
        ColumnKind.DATE: "DATE",
        ColumnKind.TIME: "TIME",
        ColumnKind.TIMESTAMP: "DATETIME",
        ColumnKind.TIMESTAMPTZ: "TIMESTAMP",
        ColumnKind.BINARY: "BYTES",
        ColumnKind.UUID: "STRING",
        ColumnKind.JSON: "JSON",
        ColumnKind.VECTOR: "ARRAY<FLOAT64>",
    },
    upsert=Upsert.MERGE,
    decimal_digits=76,
    numeric="NUMERIC",
    vector_brackets="",  # a load job takes a vector as the list that it is
    max_identifier=300,
    backslashes=True,
)
