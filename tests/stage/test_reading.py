"""Rows that come from another database than the target's, and what the target knows of them."""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.stage.plan.reading import with_known
from airflow_batch_llm.testing.staged_rows import labels, land, part
from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse


class Counting(DuckDBWarehouse):
    """It notes of how many keys each look-up was."""

    def known(self, target: Any, keys: pa.RecordBatch) -> pa.RecordBatch:
        self.asked = [*getattr(self, "asked", []), keys.num_rows]
        return super().known(target, keys)


@pytest.fixture
def target(tmp_path: Path) -> Counting:
    """Make a target with an answer for every third number."""
    warehouse = Counting(tmp_path / "target.duckdb")
    warehouse.prepare(labels())
    land(warehouse, labels(), part(), [{"id": n, "_llm_input_hash": f"{n}"} for n in range(0, 30_000, 3)])
    return warehouse


def rows_of(tmp_path: Path, warehouse: Counting, body: str, rows: int) -> list[tuple[int, str | None]]:
    path = tmp_path / "source.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(f"CREATE TABLE tickets AS SELECT range AS id, {body} AS body FROM range({rows})")
    source = DuckDBWarehouse(path)
    found = with_known(source, Source(table="tickets"), warehouse, labels()).read_all()
    source.close()
    warehouse.close()
    return list(
        zip(*(found.column(name).to_pylist() for name in ("id", "_llm_known_input_hash")), strict=True)
    )


def test_many_short_rows_are_looked_up_at_once(tmp_path: Path, target: Counting) -> None:
    found = rows_of(tmp_path, target, "'short'", 30_000)
    assert sorted(found) == [(n, None if n % 3 else f"{n}") for n in range(30_000)]
    assert target.asked == [30_000]


def test_long_rows_are_looked_up_before_they_fill_the_memory(tmp_path: Path, target: Counting) -> None:
    found = rows_of(tmp_path, target, "repeat('long', 1000)", 20_000)
    assert sorted(found) == [(n, None if n % 3 else f"{n}") for n in range(20_000)]
    assert len(target.asked) > 1
    assert sum(target.asked) == 20_000


def test_a_source_without_rows_asks_nothing(tmp_path: Path, target: Counting) -> None:
    assert rows_of(tmp_path, target, "'short'", 0) == []
    assert not hasattr(target, "asked")
