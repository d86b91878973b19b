"""Count what passes through a worker if a stage runs in the warehouse, beside the same rows by the worker.

    python -m tests.benchmarks.in_warehouse [--rows 20000] [--batch 200000]

BigQuery is the emulator on loopback, whose CPU is not counted. Bytes are those of the worker's sockets; the worker's own
workspace is on its disk, and its files are counted beside.
"""

import argparse
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from airflow_batch_llm.simulator.handle import Simulator
from tests.emulators.servers import running
from tests.stage.bigquery_world import BigQueryWorld, new_staging
from tests.stage.world import Bench

_TEXT = 400
#: Columns that do not depend on the time and the batch of an answer.
_SAME = (
    "id, label, _llm_input_hash, _llm_spec_hash, _llm_model, _llm_input_tokens, _llm_cached_tokens, _llm_output_tokens,"
    " _llm_cost_usd"
)


class CountedSocket(socket.socket):
    """A socket whose bytes are added up."""

    received = sent = 0

    def recv(self, *arguments: Any) -> bytes:
        data = super().recv(*arguments)
        CountedSocket.received += len(data)
        return data

    def recv_into(self, *arguments: Any) -> int:
        count = super().recv_into(*arguments)
        CountedSocket.received += count
        return count

    def send(self, data: Any, *arguments: Any) -> int:
        count = super().send(data, *arguments)
        CountedSocket.sent += count
        return count

    def sendall(self, data: Any, *arguments: Any) -> None:
        super().sendall(data, *arguments)
        CountedSocket.sent += len(memoryview(data).cast("B"))


def main(rows: int, batch: int) -> None:
    socket.socket = CountedSocket  # type: ignore[misc]
    with running() as emulators, tempfile.TemporaryDirectory() as folder:
        os.environ["BIGQUERY_EMULATOR_HOST"] = emulators.bigquery
        with Simulator(batch_seconds=0, bigquery_url=emulators.bigquery) as simulator:
            world = BigQueryWorld(
                folder=Path(folder),
                provider_name="vertex",
                url=simulator.url,
                environ={"BIGQUERY_EMULATOR_HOST": emulators.bigquery},
                staging=new_staging(emulators.bigquery),
            )
            world.begin()
            world.ask(
                f"CREATE TABLE tickets AS SELECT i AS id, CONCAT('subject ', CAST(i AS STRING)) AS subject,"
                f" REPEAT('body ', {_TEXT // 5}) AS body FROM UNNEST(GENERATE_ARRAY(1, {rows})) AS i"
            )
            tables = []
            for execution in ("warehouse", "worker"):
                measure(world, execution, batch)
                tables.append(world.ask(f"SELECT {_SAME} FROM labels ORDER BY id"))
                world.ask("DROP TABLE labels")
            print(f"both tables are the same: {tables[0] == tables[1] and len(tables[0]) == rows}")


def measure(world: BigQueryWorld, execution: str, batch: int) -> None:
    """Run the stage once, and print its bytes, time and memory."""
    CountedSocket.received = CountedSocket.sent = 0
    began, cpu = time.monotonic(), time.process_time()
    bench = Bench(world)
    done = bench.complete(
        f"dag/task/{execution}", execution=execution, rows_per_batch=batch, max_cost_usd=None, carry=()
    )
    folder = world.folder / "workspace" / "dag" / "task" / execution
    files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(
        f"{execution}: {done.report.rows:,} rows, {CountedSocket.received / 1e6:,.1f} MB received and"
        f" {CountedSocket.sent / 1e6:,.1f} MB sent, {files / 1e6:,.1f} MB in the run folder,"
        f" {time.process_time() - cpu:,.1f} s of CPU, {time.monotonic() - began:,.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=200_000)
    wanted = parser.parse_args()
    main(wanted.rows, wanted.batch)
