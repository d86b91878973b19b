"""CPU seconds of a small night: a task in a fresh process plans few rows, sends them, and defers.

    python -m tests.benchmarks.small_night --rows 100 --imports

Airflow is imported before the clock begins: the task's process has it anyway. With `--imports` the packages that cost
most to import after that are printed, with the milliseconds that they cost by themselves.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb

from airflow_batch_llm.simulator.handle import Simulator
from tests.benchmarks.parse_dag import AIRFLOW
from tests.vendors import OVER_HTTPX, VENDORS

_MARK = "from here on it is ours"
_FEW = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--providers", nargs="+", default=OVER_HTTPX, choices=OVER_HTTPX)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--imports", action="store_true", help="print what costs most to import")
    chosen = parser.parse_args()
    print(f"{'':26}{'rows':>10}{'read Dag':>10}{'to defer':>10}{'CPU s':>8}{'peak MB':>9}")
    for provider in chosen.providers:
        nights = [_night(provider, chosen.rows, imports=chosen.imports) for _ in range(chosen.tries)]
        best = min(nights, key=lambda night: night["read"] + night["work"])
        whole = best["read"] + best["work"]
        title = f"a small night, {provider}"
        print(
            f"{title:26}{chosen.rows:>10,}{best['read']:>10.2f}{best['work']:>10.2f}{whole:>8.2f}{best['mb']:>9.0f}"
        )
        for package, milliseconds in best["imports"]:
            print(f"    {package:30}{milliseconds:>8.0f} ms")


def _night(provider: str, rows: int, *, imports: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, Simulator(batch_seconds=3600) as simulator:
        path = Path(folder, "night.duckdb")
        with duckdb.connect(str(path)) as connection:
            connection.execute(
                f"CREATE TABLE tickets AS SELECT range AS id, 'Ticket ' || range AS body FROM range({rows})"
            )
        vendor = {
            "conn_type": provider,
            "host": VENDORS[provider].base_url(simulator.url),
            "password": "any",
        }
        environment = {
            **os.environ,
            "AIRFLOW_HOME": folder,
            "AIRFLOW_CONN_WAREHOUSE": json.dumps({"conn_type": "duckdb", "host": str(path)}),
            f"AIRFLOW_CONN_{provider.upper()}_DEFAULT": json.dumps(vendor),
            "AIRFLOW__BATCH_LLM__WORKSPACE": f"{folder}/workspace",
        }
        options = ["-X", "importtime"] if imports else []
        command = [sys.executable, "-W", "ignore", *options, "-m", __spec__.name, "child", provider]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return {**json.loads(done.stdout.splitlines()[-1]), "imports": _largest(done.stderr)}


def _largest(told: str) -> list[tuple[str, float]]:
    """Return the packages that took most time to import, from what `-X importtime` wrote after the mark."""
    spent: Counter[str] = Counter()
    for line in told.partition(_MARK)[2].splitlines():
        if line.startswith("import time:") and line.count("|") == 2:
            own, _, name = line.removeprefix("import time:").split("|")
            spent[".".join(name.strip().split(".")[:2])] += float(own) / 1000
    return spent.most_common(_FEW)


def labeller(provider: str, *, deferrable: bool) -> Any:
    """Import the operator, and return one that labels the tickets."""
    from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

    return LLMTransformOperator(
        task_id="label",
        source_table="tickets",
        source_conn_id="warehouse",
        key="id",
        prompt="Which label fits this ticket? {{ body }}",
        output_type=["billing", "bug", "other"],
        model_id=f"{provider}:{VENDORS[provider].model}",
        target="labels",
        deferrable=deferrable,
    )


def child(provider: str) -> None:
    """Run the task up to its deferral. Prints its CPU seconds and its peak memory."""
    exec(AIRFLOW)  # the text is that of another benchmark
    print(_MARK, file=sys.stderr, flush=True)
    from airflow.providers.common.compat.sdk import TaskDeferred

    began = _cpu()
    operator = labeller(provider, deferrable=True)
    read = _cpu()
    ti: Any = SimpleNamespace(dag_id="dag", run_id="run", task_id="label", map_index=-1, max_tries=0)
    try:
        operator.execute({"ti": ti, "run_id": "run", "task": operator})
    except TaskDeferred:
        deferred = _cpu()
    from tests.benchmarks.stage_steps import peak_mb

    print(json.dumps({"read": read - began, "work": deferred - read, "mb": peak_mb()}))


def _cpu() -> float:
    used = os.times()
    return used.user + used.system


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2])
    else:
        main()
