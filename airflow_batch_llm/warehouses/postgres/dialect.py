"""Say how PostgreSQL's SQL differs."""

from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, Dialect, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind

DIALECT = Dialect(
    name="postgres",
    title="PostgreSQL",
    aliases=frozenset({"postgresql"}),
    types={
        **ANSI_TYPES,
        ColumnKind.STRING: "TEXT",
        ColumnKind.BINARY: "BYTEA",
        ColumnKind.UUID: "UUID",
        ColumnKind.JSON: "JSONB",
        ColumnKind.VECTOR: "DOUBLE PRECISION[]",
    },
    own_types={"citext": ColumnKind.STRING, '"char"': ColumnKind.STRING},
    upsert=Upsert.ON_CONFLICT,
    from_text={ColumnKind.JSON: "CAST({} AS JSONB)", ColumnKind.VECTOR: "CAST({} AS DOUBLE PRECISION[])"},
    vector_brackets="{}",
    # Not a cast, which cuts the blanks off a CHAR.
    text_of="CONCAT({}, '')",
    max_identifier=63,
    placeholder="${}",
    keeps_nul=False,
)
