"""The steps that the warehouse benchmark times, each in a process of its own: ours, and the same by hand."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.testing.staged_rows import START, columns, labels
from airflow_batch_llm.warehouses import find_dialect
from airflow_batch_llm.warehouses.base import Part, Warehouse

PART_ROWS = 50_000
HELD = 1_000_000  # rows that the target holds before
TARGET = labels(answer=columns(label=ColumnType.STRING, why=ColumnType.JSON))
KINDS = {"why": "JSON"}


def answers(first: int, count: int) -> pa.RecordBatch:
    """Answers for `count` keys from `first` on."""
    ids = range(first, first + count)
    made: dict[str, Any] = {
        "id": list(ids),
        "label": ["billing" if n % 2 else "technical" for n in ids],
        "why": [f'{{"score":{n % 100},"why":"because \\"it\\" is {n}","tags":["a","b"]}}' for n in ids],
        "_llm_input_hash": [f"{n:032x}" for n in ids],
    }
    constant = {
        "_llm_spec_hash": "0123456789abcdef" * 2,
        "_llm_model": "claude-haiku-4-5",
        "_llm_run_id": "nightly/label/scheduled__2026-11-21",
        "_llm_shard": 0,
        "_llm_batch_id": "msgbatch_0123456789",
        "_llm_planned_at": START,
        "_llm_processed_at": START,
        "_llm_input_tokens": 350,
        "_llm_cached_tokens": 0,
        "_llm_output_tokens": 40,
        "_llm_cost_usd": 0.000275,
        "_llm_shared": False,
    }
    arrays = [
        pa.array(made[field.name], field.type)
        if field.name in made
        else pa.repeat(pa.scalar(constant[field.name], field.type), count)
        for field in TARGET.answer_columns
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=TARGET.answer_columns)


def parts(rows: int) -> list[Part]:
    """The shards of a run of this many rows."""
    return [Part(run_id="bench", round=1, shard=n) for n in range(-(-rows // PART_ROWS))]


def stored(folder: Path, rows: int) -> Iterator[pa.RecordBatch]:
    """The answers from the file that was made before the clock started."""
    with pq.ParquetFile(folder / f"answers-{rows}.parquet", pre_buffer=False) as file:
        yield from file.iter_batches(PART_ROWS)


def open_warehouse(database: str, where: str) -> Warehouse:
    """The adapter under test."""
    if database == "duckdb":
        from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse

        return DuckDBWarehouse(where)
    from airflow_batch_llm.warehouses.postgres.warehouse import PostgresWarehouse

    return PostgresWarehouse(where)


def read(database: str, where: str, folder: Path, rows: int) -> None:
    """Read the source to its end."""
    count = sum(
        batch.num_rows for batch in open_warehouse(database, where).read(Source(table=f"source_{rows}"))
    )
    assert count == rows


def stage(database: str, where: str, folder: Path, rows: int) -> None:
    """Stage the answers, part by part."""
    warehouse = open_warehouse(database, where)
    none = pa.RecordBatchReader.from_batches(TARGET.failure_columns, [])
    for part, batch in zip(parts(rows), stored(folder, rows), strict=True):
        reader = pa.RecordBatchReader.from_batches(TARGET.answer_columns, [_typed(batch)])
        warehouse.load(TARGET, part, reader, none)
    warehouse.close()


def publish(database: str, where: str, folder: Path, rows: int) -> None:
    """Merge what is staged."""
    warehouse = open_warehouse(database, where)
    warehouse.publish(TARGET, parts(rows))
    warehouse.close()


def read_by_hand(database: str, where: str, folder: Path, rows: int) -> None:
    """Arrow out of DuckDB; the bytes of COPY out of PostgreSQL."""
    if database == "duckdb":
        import duckdb

        with duckdb.connect(where, read_only=True) as connection:
            reader = connection.sql(f"SELECT * FROM source_{rows}").to_arrow_reader(PART_ROWS)
            assert sum(batch.num_rows for batch in reader) == rows
        return
    import psycopg

    copying = f"COPY source_{rows} TO STDOUT"
    with psycopg.connect(where) as connection, connection.cursor() as cursor, cursor.copy(copying) as copy:
        assert sum(1 for _ in copy) == rows


def stage_by_hand(database: str, where: str, folder: Path, rows: int) -> None:
    """The answers into a table beside the target, by Arrow or by COPY."""
    reader = pa.RecordBatchReader.from_batches(_plain_schema(), map(_typed_plain, stored(folder, rows)))
    if database == "duckdb":
        import duckdb

        with duckdb.connect(where) as connection:
            connection.register("answers", reader)
            connection.execute("CREATE OR REPLACE TABLE by_hand_staged AS SELECT * FROM answers")
        return
    import psycopg

    with psycopg.connect(where) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS by_hand_staged")
        cursor.execute("CREATE UNLOGGED TABLE by_hand_staged (LIKE by_hand)")
        cursor.execute("ALTER TABLE by_hand_staged ALTER why TYPE text")
        with cursor.copy("COPY by_hand_staged FROM STDIN (FORMAT csv)") as copy:
            for batch in reader:
                sink = pa.BufferOutputStream()
                csv.write_csv(batch, sink, csv.WriteOptions(include_header=False))
                copy.write(memoryview(sink.getvalue()))


def publish_by_hand(database: str, where: str, folder: Path, rows: int) -> None:
    """One upsert from there."""
    names = TARGET.answer_columns.names
    if database == "duckdb":
        import duckdb

        changes = ", ".join(f"{name} = s.{name}" for name in names if name != "id")
        with duckdb.connect(where) as connection:
            connection.execute(
                f"MERGE INTO by_hand AS t USING by_hand_staged AS s ON t.id = s.id "
                f"WHEN MATCHED THEN UPDATE SET {changes} WHEN NOT MATCHED THEN INSERT BY NAME"
            )
        return
    import psycopg

    changes = ", ".join(f"{name} = excluded.{name}" for name in names if name != "id")
    chosen = ", ".join(f"{name}::jsonb" if name in KINDS else name for name in names)
    with psycopg.connect(where) as connection:
        connection.execute(
            f"INSERT INTO by_hand SELECT {chosen} FROM by_hand_staged ON CONFLICT (id) DO UPDATE SET {changes}"
        )


STEPS: dict[str, Callable[[str, str, Path, int], None]] = {
    "read": read,
    "stage": stage,
    "publish": publish,
    "read by hand": read_by_hand,
    "stage by hand": stage_by_hand,
    "publish by hand": publish_by_hand,
}


def _typed(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [
            column if column.type == field.type else pa.ExtensionArray.from_storage(field.type, column)
            for column, field in zip(batch.columns, TARGET.answer_columns, strict=True)
        ],
        schema=TARGET.answer_columns,
    )


def _plain_schema() -> pa.Schema:
    return pa.schema(
        [field.with_type(pa.string()) if field.name in KINDS else field for field in TARGET.answer_columns]
    )


def _typed_plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    arrays = [column.storage if isinstance(column, pa.ExtensionArray) else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=_plain_schema())


def main(arguments: Sequence[str]) -> None:
    """Run one step and print how long it took and how much memory was the most."""
    step, database, where, folder, rows = arguments
    open_warehouse(database, where).close()
    for module in ("duckdb", "pandas", "psycopg", "sqlglot"):  # loading them is no part of a step
        import_module(module)
    find_dialect(database).table("labels")  # sqlglot loads a dialect when it is first asked

    before = _peak_mb()
    began = time.perf_counter()
    STEPS[step](database, where, Path(folder), int(rows))
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "before_mb": before, "peak_mb": _peak_mb()}))


def _peak_mb() -> float:
    # getrusage would tell the parent's peak, which a child inherits.
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main(sys.argv[1:])
