"""Measure the cost of the search for answers to reuse, and of the copy.

    python -m tests.benchmarks.reuse [rows]

The target of a DuckDB file holds as many answers as the source has rows. Of the source's rows 30 % have new keys; the others
are answered already. In `repeated` the target has answered the texts of the 30 %, in `fresh` it has not: there the search
finds nothing, and all of what it costs is added.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from airflow_batch_llm.core.settings import Guards, Source, Stage
from airflow_batch_llm.core.spec import input_hashes, spec_hash
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.resolved import output_type_of, read_prompt, spec_of
from airflow_batch_llm.stage.run import Run
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse

WAYS = ("none", "target")
SOURCES = ("fresh", "repeated")
_AT_ONCE = 100_000


def stage(reuse: str, table: str = "repeated", *, plan_only: bool = False) -> Stage:
    return Stage(
        source=Source(table=table),
        key=("id",),
        model_id="openai:gpt-5-mini",
        prompt="Which label fits this ticket? {{ body }}",
        output_type=["billing", "bug", "other"],
        target="labels",
        max_cost_usd=None,
        plan_only=plan_only,
        guards=Guards(reuse=reuse),
    )


def run(folder: Path, reuse: str, name: str, table: str = "repeated") -> Run:
    warehouse = DuckDBWarehouse(folder / "bench.duckdb")
    provider = connect("openai", Access(api_key="any", base_url="http://127.0.0.1:9/v1"))
    parts = Parts(
        provider=provider,
        source=warehouse,
        target=warehouse,
        workspace=Workspace.open(str(folder / f"workspace-{name}")),
        spool=folder / "spool",
    )
    return Run(stage=stage(reuse, table, plan_only=name == "shape"), parts=parts, name=name)


def prepare(folder: Path, rows: int) -> None:
    """Make the source, let the package shape the target, and fill it as finished runs would have."""
    with duckdb.connect(str(folder / "bench.duckdb")) as database:
        database.execute(
            "CREATE TABLE whole AS SELECT CASE WHEN i < ? THEN i + 10000000 ELSE i END AS id,"
            " 'ticket ' || i || repeat(' and so on', 20) AS body FROM range(?) t(i)",
            [rows * 3 // 10, rows],
        )
        database.execute("CREATE TABLE repeated AS SELECT * FROM whole LIMIT 0")
    one = run(folder, "none", "shape")
    one.advance()
    one.parts.target.close()
    asked = stage("none")
    spec = spec_hash(spec_of(asked, read_prompt(asked), output_type_of(asked), one.parts.provider))
    with duckdb.connect(str(folder / "bench.duckdb")) as database:
        database.execute("INSERT INTO repeated SELECT * FROM whole ORDER BY id % 10000000; DROP TABLE whole")
        database.execute(
            "CREATE TABLE fresh AS SELECT id, CASE WHEN id < 10000000 THEN body ELSE 'fresh ' || body END AS body"
            " FROM repeated"
        )
        for first in range(0, rows, _AT_ONCE):
            bodies = database.sql(
                "SELECT id % 10000000 AS n, body FROM repeated ORDER BY n LIMIT ? OFFSET ?",
                params=[_AT_ONCE, first],
            ).to_arrow_table()
            hashed = bodies.append_column("hash", [input_hashes({"body": bodies.column("body").to_pylist()})])
            database.register("hashed", hashed)
            database.execute(
                "INSERT INTO labels BY NAME SELECT n AS id, 'bug' AS label, hash AS _llm_input_hash,"
                f" '{spec}' AS _llm_spec_hash, 'gpt-5-mini' AS _llm_model, 'before/g1' AS _llm_run_id,"
                " now() - INTERVAL 1 DAY AS _llm_planned_at FROM hashed"
            )


def measure(folder: Path, reuse: str, table: str) -> None:
    """Plan in this process, then copy. Prints the time and memory of both."""
    one = run(folder, reuse, f"{table}-{reuse}", table)
    wall, cpu = time.perf_counter(), time.process_time()
    generation = one.generation()
    plan = generation.first
    seen = {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "why": dict(plan.why),
    }
    if plan.reused:
        wall, cpu = time.perf_counter(), time.process_time()
        generation._copy(folder)
        seen |= {
            "copy_wall": time.perf_counter() - wall,
            "copy_cpu": time.process_time() - cpu,
            "copy_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    print(json.dumps(seen))


def step(*arguments: str) -> str:
    """Run a step in a process of its own, whose peak of memory is its own, and return what it prints."""
    command = [sys.executable, "-m", "tests.benchmarks.reuse", "--step", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(rows: int) -> None:
    with TemporaryDirectory() as folder:
        step(folder, "prepare", str(rows))
        for table in SOURCES:
            found = {}
            for reuse in WAYS:
                found[reuse] = json.loads(step(folder, reuse, table).splitlines()[-1])
                print(f"{table}, reuse={reuse!r}: {found[reuse]}")
            for name in ("cpu", "peak_mb"):
                print(
                    f"{table}: {name} {found['target'][name] / found['none'][name]:.2f} times that of 'none'"
                )


if __name__ == "__main__":
    if sys.argv[1:2] != ["--step"]:
        main(int(sys.argv[1]) if sys.argv[1:] else 1_000_000)
    elif sys.argv[3] == "prepare":
        prepare(Path(sys.argv[2]), int(sys.argv[4]))
    else:
        measure(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
