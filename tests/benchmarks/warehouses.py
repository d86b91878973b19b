"""Rows a second and peak memory of DuckDB and PostgreSQL, beside the plain best by hand, in the same run.

python -m tests.benchmarks.warehouses --rows 1000000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.benchmarks.warehouse_steps import HELD, PART_ROWS, TARGET, answers, open_warehouse

_BODY = 400


def main() -> None:
    """Fill two databases, time each step in a process of its own, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--databases", nargs="+", default=["duckdb", "postgres"])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.setdefault("XDG_RUNTIME_DIR", name)
        for rows in chosen.rows:
            _store_answers(folder, rows)
        print(f"{'':24}{'rows':>10}{'rows/s':>10}{'by hand':>10}{'ratio':>7}{'peak MB':>9}{'by hand':>9}")
        for database in chosen.databases:
            _DATABASES[database](folder, chosen.rows)


def _duckdb(folder: Path, sizes: list[int]) -> None:
    import duckdb

    for rows in sizes:
        where = str(folder / f"bench-{rows}.duckdb")
        open_warehouse("duckdb", where).prepare(TARGET)
        held = answers(0, HELD)
        with duckdb.connect(where) as connection:
            connection.register("held", held)
            connection.execute("INSERT INTO labels SELECT * FROM held")
            connection.execute("CREATE TABLE by_hand AS SELECT * FROM labels")
            connection.execute(
                f"CREATE TABLE source_{rows} AS SELECT range AS id, rpad(range::text, {_BODY}, 'lorem ipsum ') AS body "
                f"FROM range({rows})"
            )
        _print_steps("duckdb", where, folder, rows)


def _postgres(folder: Path, sizes: list[int]) -> None:
    import pgserver
    import psycopg

    server = pgserver.get_server(folder / "postgres")
    try:
        for rows in sizes:
            where = server.get_uri()
            with psycopg.connect(where) as connection:
                connection.execute("DROP TABLE IF EXISTS labels, labels__failures, by_hand, by_hand_staged")
            warehouse = open_warehouse("postgres", where)
            warehouse.prepare(TARGET)
            with psycopg.connect(where) as connection, connection.cursor() as cursor:
                from airflow_batch_llm.warehouses import find_dialect
                from airflow_batch_llm.warehouses.arrow import plain_batch
                from airflow_batch_llm.warehouses.postgres.reads import copy_rows

                with cursor.copy("COPY labels FROM STDIN (FORMAT csv)") as copy:
                    for first in range(0, HELD, PART_ROWS):
                        plain = plain_batch(answers(first, PART_ROWS), frozenset(), find_dialect("postgres"))
                        copy.write(copy_rows(plain))
                cursor.execute("CREATE TABLE by_hand (LIKE labels INCLUDING ALL)")
                cursor.execute("INSERT INTO by_hand SELECT * FROM labels")
                cursor.execute(
                    f"CREATE TABLE source_{rows} AS SELECT n AS id, rpad(n::text, {_BODY}, 'lorem ipsum ') AS body "
                    f"FROM generate_series(1, {rows}) AS n"
                )
            with psycopg.connect(where, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
                connection.execute("CHECKPOINT")  # what loading left to be written is no part of a step
            _print_steps("postgres", where, folder, rows)
            warehouse.close()
    finally:
        server.cleanup()


_DATABASES: dict[str, Callable[[Path, list[int]], None]] = {"duckdb": _duckdb, "postgres": _postgres}


def _store_answers(folder: Path, rows: int) -> None:
    """Half of the answers replace rows that the target holds, half are new."""
    with pq.ParquetWriter(
        folder / f"answers-{rows}.parquet", TARGET.answer_columns, compression="lz4"
    ) as writer:
        for first in range(0, rows, PART_ROWS):
            writer.write_batch(answers(HELD - rows // 2 + first, PART_ROWS), row_group_size=PART_ROWS)


def _print_steps(database: str, where: str, folder: Path, rows: int) -> None:
    for step in ("read", "stage", "publish"):
        # The first to read a table pays for its way into the caches of the database and of the machine.
        rounds = 2 if step == "read" else 1
        ours = _best(rounds, step, database, where, folder, rows)
        hand = _best(rounds, f"{step} by hand", database, where, folder, rows)
        print(
            f"{database + ' ' + step:24}{rows:>10}{rows / ours['seconds']:>10.0f}{rows / hand['seconds']:>10.0f}"
            f"{hand['seconds'] / ours['seconds']:>7.2f}{ours['peak_mb']:>9.0f}{hand['peak_mb']:>9.0f}",
            flush=True,
        )


def _best(rounds: int, *step: Any) -> dict[str, Any]:
    return min((_timed(*step) for _ in range(rounds)), key=itemgetter("seconds"))


def _timed(step: str, database: str, where: str, folder: Path, rows: int) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.warehouse_steps",
        step,
        database,
        where,
        str(folder),
        str(rows),
    ]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.decode())
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
