"""Rows put aside on the local disk come back as they were, any number of times."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.warehouses.spool import spool, write_parquet

SCHEMA = pa.schema([("id", pa.int64()), ("data", pa.json_(pa.string())), ("vector", pa.list_(pa.float64()))])


def batches(count: int) -> list[pa.RecordBatch]:
    rows = [{"id": n, "data": f'{{"n":{n}}}' if n % 2 else None, "vector": [n / 2]} for n in range(count)]
    table = pa.Table.from_arrays(
        [pa.array([row[field.name] for row in rows], field.type) for field in SCHEMA], schema=SCHEMA
    )
    return table.to_batches(max_chunksize=3)


def reader(count: int) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(SCHEMA, batches(count))


@pytest.mark.parametrize("count", [0, 1, 10])
def test_rows_come_back_in_order_and_more_than_once(tmp_path: Path, count: int) -> None:
    kept = spool(reader(count), tmp_path / "rows.arrow")
    assert (kept.rows, kept.schema) == (count, SCHEMA)
    for _ in range(2):
        found = kept.read()
        assert found.schema == SCHEMA
        assert found.read_all().equals(pa.Table.from_batches(batches(count), SCHEMA))


def test_a_reading_that_is_left_early_leaves_the_file_to_others(tmp_path: Path) -> None:
    kept = spool(reader(10), tmp_path / "rows.arrow")
    first = kept.read()
    assert first.read_next_batch().num_rows == 3
    assert kept.read().read_all().num_rows == 10


def test_a_spool_is_removed_once_and_again(tmp_path: Path) -> None:
    kept = spool(reader(1), tmp_path / "rows.arrow")
    kept.remove()
    kept.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_parquet_file_holds_every_row(tmp_path: Path) -> None:
    assert write_parquet(reader(10), tmp_path / "rows.parquet") == 10
    assert pq.read_table(tmp_path / "rows.parquet").column("id").to_pylist() == list(range(10))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    one = pa.record_batch({"body": ["x" * 1_000] * 1_000})
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    most = 0

    def many() -> "pa.RecordBatchReader":
        def stream() -> object:
            nonlocal most
            for _ in range(200):
                most = max(most, pool.bytes_allocated() - before)
                yield pa.record_batch({"body": pa.array(["x" * 1_000] * 1_000)})

        return pa.RecordBatchReader.from_batches(one.schema, stream())

    kept = spool(many(), tmp_path / "rows.arrow")
    for batch in kept.read():
        most = max(most, pool.bytes_allocated() - before)
        del batch
    assert kept.rows == 200_000
    assert most < 20 << 20  # the rows themselves are 200 MB
