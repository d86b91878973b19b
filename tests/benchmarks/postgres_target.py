"""Publish answers into a large target of PostgreSQL while others read it.

    python -m tests.benchmarks.postgres_target --held 10000000 --answers 100000

Half of the answers are new and half replace a row. Printed for each kind of target: seconds to look the keys up, to load
and to publish, the slowest read of one row by its key during the publish and before it, how many waits for a lock were
seen, and megabytes that the publish wrote to the write-ahead log.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pyarrow as pa

from airflow_batch_llm.warehouses.arrow import plain_batch
from airflow_batch_llm.warehouses.base import Part
from airflow_batch_llm.warehouses.postgres.reads import copy_rows, tables
from airflow_batch_llm.warehouses.postgres.registration import DIALECT
from airflow_batch_llm.warehouses.postgres.warehouse import PostgresWarehouse
from airflow_batch_llm.warehouses.publication import landings, publication
from airflow_batch_llm.warehouses.statements import Statements
from tests.benchmarks.warehouse_steps import TARGET, answers
from tests.emulators import postgres

_LOOK_UP, _BEFORE = 20_000, 3.0
#: What a user makes of the target, each after the one before.
_KINDS = {
    "as we create it": (),
    "and three more indexes": (
        "CREATE INDEX more_1 ON labels (label)",
        "CREATE INDEX more_2 ON labels (_llm_run_id)",
        "CREATE INDEX more_3 ON labels (_llm_processed_at)",
    ),
    "an index, not unique": (
        "DROP INDEX more_1, more_2, more_3",
        "CREATE INDEX plain ON labels (id)",
        "ALTER TABLE labels DROP CONSTRAINT labels_pkey",
    ),
    "no index": ("DROP INDEX plain",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--held", type=int, default=10_000_000)
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--plans", action="store_true", help="print how PostgreSQL publishes")
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="bench-postgres-") as folder,
        postgres.running(Path(folder)) as where,
    ):
        filled = _seconds(lambda: _fill(where, chosen.held))
        print(f"{chosen.held:,} rows were written in {filled:.0f} s", flush=True)
        print(
            f"{'':24}{'look up s':>10}{'load s':>8}{'publish s':>10}{'slowest read ms':>17}{'before':>8}{'waits':>7}{'WAL MB':>8}"
        )
        for number, (kind, statements) in enumerate(_KINDS.items()):
            with psycopg.connect(where, autocommit=True) as connection:
                for statement in (*statements, "ANALYZE labels", "CHECKPOINT"):
                    connection.execute(statement)
            held = _Held(where=where, rows=chosen.held, first=2 * number)
            held.measure(kind, chosen.answers, plans=chosen.plans)


def _fill(where: str, held: int) -> None:
    """Make a target with rows 0, 2, 4, …; the odd keys are new ones."""
    with psycopg.connect(where, autocommit=True) as connection:
        warehouse = PostgresWarehouse(where)
        warehouse.prepare(TARGET)
        warehouse.close()
        connection.execute("CREATE UNLOGGED TABLE few (LIKE labels)")
        with connection.cursor() as cursor, cursor.copy("COPY few FROM STDIN (FORMAT csv)") as copy:
            copy.write(copy_rows(plain_batch(answers(0, 1000), frozenset(), DIALECT)))
        others = ", ".join(f'few."{name}"' for name in TARGET.answer_columns.names[1:])
        connection.execute(
            f"INSERT INTO labels SELECT 2 * (1000 * n + few.id), {others} FROM generate_series(0, {held // 1000 - 1}) n, few"
        )
        connection.execute("DROP TABLE few")


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A target that is full, and the first of the keys that are published into it."""

    where: str
    rows: int
    first: int

    def measure(self, kind: str, count: int, *, plans: bool) -> None:
        warehouse, part = PostgresWarehouse(self.where), Part(run_id=kind, round=1, shard=1)
        batch = self._answers(count)
        keys = [batch.slice(at, _LOOK_UP).select(["id"]) for at in range(0, count, _LOOK_UP)]
        looked = _seconds(lambda: [warehouse.known(TARGET, some) for some in keys])
        none = pa.RecordBatchReader.from_batches(TARGET.failure_columns, [])
        rows = pa.RecordBatchReader.from_batches(batch.schema, [batch])
        loaded = _seconds(lambda: warehouse.load(TARGET, part, rows, none))
        if plans:
            self._explain(warehouse, part)
        with psycopg.connect(self.where, autocommit=True) as connection, self._reading() as reads:
            time.sleep(_BEFORE)
            before, reads["slowest"] = reads["slowest"], 0.0
            (begin,) = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone() or ("",)
            published = _seconds(lambda: warehouse.publish(TARGET, [part]))
            written = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)"
            (wal,) = connection.execute(written, [begin]).fetchone() or (0,)
        print(
            f"{kind:24}{looked:>10.1f}{loaded:>8.1f}{published:>10.1f}{1000 * reads['slowest']:>17.0f}"
            f"{1000 * before:>8.0f}{reads['waits']:>7.0f}{float(wal) / 1e6:>8.0f}",
            flush=True,
        )
        warehouse.drop_loaded(TARGET, [part])
        warehouse.close()

    def _answers(self, count: int) -> pa.RecordBatch:
        """Return answers to keys all over the target. Every second one is new."""
        step = max(1, 2 * self.rows // count) - 1 | 1
        made = answers(0, count)
        keys = pa.array([self.first + n * step for n in range(count)], pa.int64())
        return pa.RecordBatch.from_arrays([keys, *made.columns[1:]], schema=made.schema)

    def _explain(self, warehouse: PostgresWarehouse, part: Part) -> None:
        """Print the plan of each statement of a publish, and undo it."""
        statements = Statements(DIALECT)
        with psycopg.connect(self.where) as connection, psycopg.RawCursor(connection) as cursor:
            both = landings(TARGET, tables(cursor, TARGET), statements)
            staged = warehouse._staged(cursor, TARGET, [part], both)
            for step in publication(TARGET, [part], staged, both, statements):
                for (line,) in cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS) {step.sql}").fetchall():
                    print(f"    {line:.150}")
            connection.rollback()

    @contextmanager
    def _reading(self) -> Iterator[dict[str, float]]:
        """Read rows by their keys in one connection, and count in another who waits for a lock."""
        found = {"slowest": 0.0, "waits": 0.0}
        done = threading.Event()

        def read() -> None:
            key = 1
            with psycopg.connect(self.where, autocommit=True) as connection:
                while not done.wait(0.005):
                    key = key * 48_271 % 2_147_483_647
                    one = [2 * (key % self.rows)]
                    query = "SELECT label FROM labels WHERE id = %s"
                    took = _seconds(lambda: connection.execute(query, one))  # noqa: B023 - it runs at once
                    found["slowest"] = max(found["slowest"], took)

        def watch() -> None:
            with psycopg.connect(self.where, autocommit=True) as connection:
                while not done.wait(0.05):
                    count = connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
                    found["waits"] += count[0] if count else 0

        threads = [threading.Thread(target=work) for work in (read, watch)]
        for thread in threads:
            thread.start()
        try:
            yield found
        finally:
            done.set()
            for thread in threads:
                thread.join()


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
