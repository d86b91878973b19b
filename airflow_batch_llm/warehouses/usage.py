"""The columns of the ledger: one row for each run, round and route, replaced by the same run alone.

A row has an id that follows from its run, round and route.
"""

import pyarrow as pa

from airflow_batch_llm.core.model import Outcome

_UTC = pa.timestamp("us", tz="UTC")

#: The column that tells the rows of a ledger apart.
USAGE_KEY = "usage_id"

#: The columns of a ledger: who asked, what was asked, what became of it, and what it cost.
USAGE_COLUMNS = pa.schema(
    [
        (USAGE_KEY, pa.string()),
        ("run_id", pa.string()),
        ("round", pa.int64()),
        ("route", pa.string()),
        ("deployment", pa.string()),
        ("team", pa.string()),
        ("dag_id", pa.string()),
        ("task_id", pa.string()),
        ("dag_run_id", pa.string()),
        ("map_index", pa.int64()),
        ("try_number", pa.int64()),
        ("provider", pa.string()),
        ("model", pa.string()),
        ("way", pa.string()),
        ("target", pa.string()),
        ("spec_hash", pa.string()),
        ("prompt_version", pa.string()),
        *((f"rows_{outcome.value}", pa.int64()) for outcome in Outcome),
        ("requests", pa.int64()),
        ("input_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("cache_write_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("reasoning_tokens", pa.int64()),
        ("usd", pa.float64()),
        ("list_usd", pa.float64()),
        ("saved_usd", pa.float64()),
        ("stray_usd", pa.float64()),
        ("unpriced", pa.int64()),
        ("maybe_twice", pa.int64()),
        ("waited_seconds", pa.float64()),
        ("started_at", _UTC),
        ("ended_at", _UTC),
    ]
)
