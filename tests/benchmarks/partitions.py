"""Planning that is spread over workers: CPU and peak memory of each task, beside those of one worker that plans alone.

    python -m tests.benchmarks.partitions --rows 1000000 --partitions 1 4

Each task is a process of its own, one after the other; rows of 400 characters come from DuckDB or PostgreSQL.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_batch_llm.core.settings import Pace, Source, Stage
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.run import Run
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse
from airflow_batch_llm.warehouses.postgres.warehouse import PostgresWarehouse
from tests.benchmarks.planning_memory import _MAKERS, _Shape
from tests.benchmarks.stage_steps import LABELS, cpu_seconds, peak_mb
from tests.vendors import VENDORS

_QUERY = "SELECT range AS id, rpad('ticket ' || range, 400, ' lorem ipsum dolor') AS body FROM range({rows})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--source", choices=["duckdb", "postgres"], default="duckdb")
    chosen = parser.parse_args()
    print(f"{'partitions':>10}  {'task':8}{'CPU s':>8}{'peak MB':>9}")
    slowest: dict[int, float] = {}
    with Simulator(batch_seconds=3600) as simulator:
        for count in chosen.partitions:
            with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
                folder = Path(name)
                where = _MAKERS[chosen.source](
                    folder, _Shape(query=_QUERY, prompt="", rows=chosen.rows), stack
                )
                slowest[count] = _measured(count, [chosen.source, where, name, simulator.url])
    alone = slowest[chosen.partitions[0]]
    for count, seconds in slowest.items():
        print(
            f"{count:>10} partitions: {seconds:.1f} s of CPU on the longest way, {alone / seconds:.1f} times as fast"
        )


def _measured(count: int, world: list[str]) -> float:
    """Run the tasks. Returns the CPU seconds of the longest chain of tasks."""
    if count == 1:
        return _task(count, "plan", world, "")["cpu"]
    opened = _task(count, "open", world, str(count))
    reads = [_task(count, "read", world, f"{opened['opening']}/{number}") for number in range(count)]
    planned = _task(count, "plan", world, opened["opening"])
    return opened["cpu"] + max(one["cpu"] for one in reads) + planned["cpu"]


def _task(count: int, verb: str, world: list[str], given: str) -> Any:
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "child", verb, *world, given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{count:>10}  {verb:8}{found['cpu']:>8.1f}{found['mb']:>9.0f}", flush=True)
    return found


def child(verb: str, source: str, where: str, folder: str, url: str, given: str) -> None:
    """Do one task, and print its time and memory."""
    run, before, opening = _run(source, where, Path(folder), url), cpu_seconds(), ""
    match verb:
        case "open":
            opened = run.open_source(int(given))
            opening = opened.nonce if opened else ""
        case "read":
            nonce, number = given.split("/")
            replace(run, opening=nonce).read_partition(int(number))
        case _:
            replace(run, opening=given).generation()
    print(json.dumps({"cpu": cpu_seconds() - before, "mb": peak_mb(), "opening": opening}))


def _run(source: str, where: str, folder: Path, url: str) -> Run:
    target = DuckDBWarehouse(folder / "target.duckdb")
    return Run(
        stage=Stage(
            source=Source(table="tickets"),
            key=("id",),
            model_id=f"openai:{VENDORS['openai'].model}",
            prompt="Which label fits this ticket? {{ body }}",
            output_type=LABELS,
            target="ours",
            max_cost_usd=None,
            pace=Pace(rows_per_batch=10_000, max_active_batches=1000),
        ),
        parts=Parts(
            provider=connect("openai", Access(api_key="any", base_url=VENDORS["openai"].base_url(url))),
            source=DuckDBWarehouse(where) if source == "duckdb" else PostgresWarehouse(where),
            target=target,
            workspace=Workspace.open(f"{folder}/workspace"),
            spool=folder / "spool",
        ),
        name="bench",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        main()
