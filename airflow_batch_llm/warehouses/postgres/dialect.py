"""Say how PostgreSQL's SQL differs."""

from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, Dialect, Upsert
from airflow_batch_llm.warehouses.kind import Kind

DIALECT = Dialect(
    name="postgres",
    title="PostgreSQL",
    aliases=frozenset({"postgresql"}),
    types={
        **ANSI_TYPES,
        Kind.STRING: "TEXT",
        Kind.BINARY: "BYTEA",
        Kind.UUID: "UUID",
        Kind.JSON: "JSONB",
        Kind.VECTOR: "DOUBLE PRECISION[]",
    },
    own_types={"citext": Kind.STRING, '"char"': Kind.STRING},
    upsert=Upsert.ON_CONFLICT,
    from_text={Kind.JSON: "CAST({} AS JSONB)", Kind.VECTOR: "CAST({} AS DOUBLE PRECISION[])"},
    vector_brackets="{}",
    # Not a cast, which cuts the blanks off a CHAR.
    text_of="CONCAT({}, '')",
    max_identifier=63,
    placeholder="${}",
    keeps_nul=False,
)
