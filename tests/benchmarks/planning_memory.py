"""Peak memory and CPU of planning, by the shape of the rows: wide ones, long ones, and many that the target knows.

    python -m tests.benchmarks.planning_memory --known 10000000

Each plan is made in a process of its own. `from` is where the source is; the target is a DuckDB file in any case. `apart` is
a table of DuckDB whose texts are not compressed. `paged` is Parquet with pages of a megabyte, and `grouped` with row groups
of 16 MB, where `parquet` has all texts in one page.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.core.settings import Only, Pace, Shape, Source, Stage
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.run import Run
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.base import (
    ANSWER_BOOKKEEPING,
    PACKED_COLUMN,
    REUSED_COLUMN,
    ROUTE_COLUMN,
)
from airflow_batch_llm.warehouses.duckdb.registration import DIALECT
from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse
from airflow_batch_llm.warehouses.postgres.warehouse import PostgresWarehouse
from tests.benchmarks.stage_steps import LABELS, cpu_seconds, peak_mb
from tests.emulators import postgres
from tests.vendors import VENDORS

COLUMNS = 300
#: A text of a mebibyte that hardly gets shorter by compression, as SQL.
_LONG = (
    "repeat(array_to_string(list_transform(range(2048), lambda n: md5((range * 2048 + n)::text)), ''), {})"
)
_MODEL = f"openai:{VENDORS['openai'].model}"


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """Rows of one kind, as a query of DuckDB, and what is made of them."""

    query: str
    prompt: str
    rows: int
    carry: tuple[str, ...] = ()
    known: bool = False
    """The target has an answer to each of the rows, by another spec."""
    at_once: int = 1000
    """The rows that are made and written at once."""

    def portions(self, connection: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
        """Make the rows, `at_once` of them together."""
        for first in range(0, self.rows, self.at_once):
            rows = f"{first}, {min(first + self.at_once, self.rows)}"
            yield connection.sql(self.query.format(rows=rows)).to_arrow_table()


def _shapes(rows: int, known: int) -> dict[str, _Shape]:
    names = [f"c{number}" for number in range(1, COLUMNS)]
    wide = ", ".join(f"'text of column ' || range AS {name}" for name in names)
    wide_query = f"SELECT range AS id, {wide} FROM range({{rows}})"
    long = {
        f"texts of {size} MB": _Shape(
            query=f"SELECT range AS id, {_LONG.format(size * 16)} AS c1 FROM range({{rows}})",
            prompt="{{ c1 }}",
            rows=max(1, rows // 100 // size),
            at_once=max(1, 500 // size),
        )
        for size in (1, 6)
    }
    return {
        f"{COLUMNS} columns": _Shape(query=wide_query, prompt="{{ c1 }} {{ c2 }}", rows=rows),
        f"{COLUMNS} columns, carried": _Shape(
            query=wide_query, prompt="{{ c1 }}", rows=rows, carry=tuple(names)
        ),
        **long,
        "known rows": _Shape(
            query="SELECT range AS id, 'text ' || range AS c1 FROM range({rows})",
            prompt="{{ c1 }}",
            rows=known,
            known=True,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=50_000, help="wide rows; there is a megabyte of long ones for a hundred"
    )
    parser.add_argument("--known", type=int, default=4_000_000)
    parser.add_argument("--shapes", nargs="+", help="how the names of the shapes begin")
    parser.add_argument("--sources", nargs="+", default=list(_MAKERS))
    chosen = parser.parse_args()
    print(f"{'':24}{'from':>10}{'rows':>12}{'CPU s':>8}{'peak MB':>9}")
    with Simulator(batch_seconds=3600) as simulator:
        for title, shape in _shapes(chosen.rows, chosen.known).items():
            for source in chosen.sources:
                wanted = chosen.shapes is None or title.startswith(tuple(chosen.shapes))
                if wanted and not (shape.known and source != "duckdb"):
                    found = _planned(source, title, shape, chosen, simulator.url)
                    print(
                        f"{title:24}{source:>10}{shape.rows:>12,}{found['cpu']:>8.1f}{found['mb']:>9.0f}",
                        flush=True,
                    )


def _planned(source: str, title: str, shape: _Shape, chosen: Any, url: str) -> Any:
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        folder = Path(name)
        where = _MAKERS[source](folder, shape, stack)
        if shape.known:
            _know(folder, shape.rows)
        given = [source, where, title, str(chosen.rows), str(chosen.known), name, url]
        command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "child", *given]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        return json.loads(done.stdout.splitlines()[-1])


def _duckdb(folder: Path, shape: _Shape, _: ExitStack, text: str = "VARCHAR") -> str:
    with duckdb.connect(str(folder / "bench.duckdb"), config={"memory_limit": "3GB"}) as connection:
        for number, portion in enumerate(shape.portions(connection)):
            if not number:
                columns = ", ".join(
                    f"{one.name} {'BIGINT' if one.type == pa.int64() else text}" for one in portion.schema
                )
                connection.execute(f"CREATE TABLE tickets ({columns})")
            connection.register("portion", portion)
            connection.execute("INSERT INTO tickets FROM portion")
    return str(folder / "bench.duckdb")


def _apart(folder: Path, shape: _Shape, stack: ExitStack) -> str:
    return _duckdb(folder, shape, stack, "VARCHAR USING COMPRESSION uncompressed")


def _parquet(folder: Path, shape: _Shape, _: ExitStack, rows: int = 100_000, **options: Any) -> str:
    path, writer = folder / "tickets.parquet", None
    with duckdb.connect() as connection, ExitStack() as stack:
        for portion in shape.portions(connection):
            writer = writer or stack.enter_context(pq.ParquetWriter(path, portion.schema, **options))
            for batch in portion.to_batches():
                writer.write_batch(batch, row_group_size=rows)
    return str(path)


def _grouped(folder: Path, shape: _Shape, stack: ExitStack) -> str:
    """Write Parquet with row groups of 16 MB of long rows."""
    return _parquet(folder, shape, stack, max(1, shape.at_once // 31))


def _paged(folder: Path, shape: _Shape, stack: ExitStack) -> str:
    """Write Parquet whose pages end with the row that fills a megabyte, as a writer does that looks at each row."""
    return _parquet(folder, shape, stack, use_dictionary=False, write_batch_size=1)


def _postgres(folder: Path, shape: _Shape, stack: ExitStack) -> str:
    import psycopg

    from airflow_batch_llm.warehouses.postgres.reads import copy_rows

    where = stack.enter_context(postgres.running(folder))
    with duckdb.connect() as source, psycopg.connect(where) as connection, connection.cursor() as cursor:
        portions = shape.portions(source)
        first = next(portions)
        columns = ", ".join(f"{name} {'bigint' if name == 'id' else 'text'}" for name in first.schema.names)
        cursor.execute(f"CREATE TABLE tickets ({columns})")
        with cursor.copy("COPY tickets FROM STDIN (FORMAT csv)") as copy:
            for portion in chain([first], portions):
                for batch in portion.to_batches(max_chunksize=100):
                    copy.write(copy_rows(batch))
    return where


_MAKERS: dict[str, Callable[[Path, _Shape, ExitStack], str]] = {
    "duckdb": _duckdb,
    "apart": _apart,
    "parquet": _parquet,
    "paged": _paged,
    "grouped": _grouped,
    "postgres": _postgres,
}


def _know(folder: Path, rows: int) -> None:
    """Answer each row in the target, by another spec and from another input. No column is missing there."""
    given = {
        "_llm_input_hash": "lpad(range::text, 32, '0')",
        "_llm_spec_hash": "repeat('0', 32)",
        "_llm_planned_at": "TIMESTAMPTZ '2026-01-01'",
    }
    columns = [*ANSWER_BOOKKEEPING, ROUTE_COLUMN, PACKED_COLUMN, REUSED_COLUMN]
    kept = [
        f"{given.get(one.name, 'NULL')}::{DIALECT.column_type(one.type)} AS {one.name}" for one in columns
    ]
    with duckdb.connect(str(folder / "target.duckdb")) as connection:
        connection.execute(
            f"CREATE TABLE ours AS SELECT range AS id, 'bug' AS label, {', '.join(kept)} FROM range({rows})"
        )


def child(source: str, where: str, title: str, rows: str, known: str, folder: str, url: str) -> None:
    """Plan, and print what that took."""
    shape = _shapes(int(rows), int(known))[title]
    target = DuckDBWarehouse(Path(folder, "target.duckdb"))
    in_tables: dict[str, Any] = {
        "duckdb": DuckDBWarehouse, "apart": DuckDBWarehouse, "postgres": PostgresWarehouse
    }  # fmt: skip
    reads: Any = in_tables.get(source, _Files)(where)
    before = cpu_seconds()
    Run(
        stage=Stage(
            source=Source(table="tickets" if source in in_tables else None),
            key=("id",),
            model_id=_MODEL,
            prompt=shape.prompt,
            output_type=LABELS,
            target="ours",
            max_cost_usd=None,
            only=Only.NEW if shape.known else Only.CHANGED,
            shape=Shape(carry=list(shape.carry)),
            pace=Pace(rows_per_batch=10_000, max_active_batches=1000),
        ),
        parts=Parts(
            provider=connect("openai", Access(api_key="any", base_url=VENDORS["openai"].base_url(url))),
            source=reads,
            target=target,
            workspace=Workspace.open(f"{folder}/workspace"),
            spool=Path(folder, "spool"),
        ),
        name="bench",
    ).generation()
    print(json.dumps({"cpu": cpu_seconds() - before, "mb": peak_mb()}))


@dataclass(frozen=True)
class _Files:
    """A file as a source."""

    path: str

    def read(self, source: Source) -> pa.RecordBatchReader:
        from airflow_batch_llm.warehouses.files.source import FileSource, read_files

        return read_files(FileSource(uris=(self.path,)), columns=source.columns)

    def close(self) -> None:
        """Nothing is open."""


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        main()
