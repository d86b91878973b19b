"""The contract's cases about the ledger. They are skipped for a warehouse that keeps none."""

from typing import Any

import pyarrow as pa
import pytest

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.testing.staged_rows import START, BenchDatabase, at, batch, rows_of
from airflow_batch_llm.warehouses.base import Warehouse, WritesRecords
from airflow_batch_llm.warehouses.usage import USAGE_COLUMNS, USAGE_KEY

LEDGER = "llm_usage"


def spent(usage_id: str, usd: float | None, **changes: Any) -> dict[str, Any]:
    """One row of a ledger. What is not said is NULL, as for a run of the command line."""
    told = {
        "run_id": "dag/täsk/run/g1",
        "round": 1,
        "requests": 2**53 + 1,
        "rows_succeeded": 7,
        "usd": usd,
        "started_at": START,
        "ended_at": at(60.25),
    }
    return {USAGE_KEY: usage_id, **told, **changes}


class WritesLedgers:
    """The contract of `write_records`."""

    @pytest.fixture
    def ledger(self, warehouse: Warehouse) -> Any:
        """The warehouse, as one that keeps a ledger."""
        if not isinstance(warehouse, WritesRecords):
            pytest.skip("it keeps no ledger")
        return warehouse

    def test_a_row_is_written_once_and_replaced_by_itself_alone(
        self, database: BenchDatabase, ledger: Any
    ) -> None:
        first = batch(USAGE_COLUMNS, [spent("a", 0.1), spent("b", 0.25, team="it's", round=2)])
        for _ in range(2):
            ledger.write_records(LEDGER, first)
        ledger.write_records(LEDGER, batch(USAGE_COLUMNS, [spent("a", 1e-6, ended_at=None), spent("A", 3.5)]))
        unended = ledger.read(
            Source(sql=f"SELECT {USAGE_KEY} FROM {LEDGER} WHERE ended_at IS NULL")
        ).read_all()
        ledger.close()

        found = {row[USAGE_KEY]: row for row in rows_of(database, LEDGER)}

        assert unended.to_pylist() == [{USAGE_KEY: "a"}]
        assert {key: row["usd"] for key, row in found.items()} == {"a": 1e-6, "b": 0.25, "A": 3.5}
        assert set(next(iter(found.values()))) == set(USAGE_COLUMNS.names)
        row = found["b"]
        wanted = {"run_id": "dag/täsk/run/g1", "round": 2, "team": "it's", "requests": 2**53 + 1}
        assert {name: row[name] for name in wanted} == wanted
        assert [row["dag_id"], row["map_index"], row["saved_usd"]] == [None, None, None]
        assert [_utc(row[name]) for name in ("started_at", "ended_at")] == [START, at(60.25)]

    def test_a_ledger_of_an_earlier_release_gets_the_columns_that_it_lacks(
        self, database: BenchDatabase, ledger: Any
    ) -> None:
        few = pa.schema([USAGE_COLUMNS.field(name) for name in (USAGE_KEY, "run_id", "usd")])
        old = pa.table({USAGE_KEY: ["old"], "run_id": ["r"], "usd": [2.0], "note": ["by hand"]})
        database.seed(LEDGER, old.cast(pa.schema([*few, ("note", pa.string())])))

        ledger.write_records(LEDGER, batch(USAGE_COLUMNS, [spent("new", 0.5)]))
        ledger.close()

        found = {row[USAGE_KEY]: row for row in rows_of(database, LEDGER)}
        assert {key: row["usd"] for key, row in found.items()} == {"old": 2.0, "new": 0.5}
        assert (found["old"]["note"], found["new"]["rows_succeeded"]) == ("by hand", 7)


def _utc(moment: Any) -> Any:
    """A time as an instant; some databases give UTC's wall clock."""
    return moment if moment.tzinfo else moment.replace(tzinfo=START.tzinfo)
