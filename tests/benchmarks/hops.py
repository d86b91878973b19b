"""Files of the package that three rows pass through, from the operator's execute to the landed answers.

    python -m tests.benchmarks.hops --provider openai

The simulator runs in a process of its own, so its files are not counted. Only a function that is entered counts: a
module that is imported, and whose functions nobody calls, does not. The body of a class runs at import and does not count.
"""

import argparse
import inspect
import json
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import duckdb

import airflow_batch_llm
from airflow_batch_llm.simulator.handle import Simulator
from tests.benchmarks.small_night import labeller
from tests.vendors import OVER_HTTPX, VENDORS

_PACKAGE = Path(airflow_batch_llm.__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--provider", default="openai", choices=OVER_HTTPX)
    parser.add_argument(
        "--files", action="store_true", help="print each file and how many functions are entered"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Simulator(batch_seconds=0) as simulator:
        entered = _walk(Path(folder), chosen.provider, simulator.url)
    if chosen.files:
        for path, functions in sorted(entered.items()):
            lines = len((_PACKAGE / path).read_text().splitlines())
            print(f"{path:40}{functions:>5} functions{lines:>6} lines")
    print(f"three rows, {chosen.provider}: {len(entered)} files, {entered.total()} functions")


def _walk(folder: Path, provider: str, url: str) -> Counter[str]:
    path = folder / "rows.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE tickets AS SELECT range AS id, 'Ticket ' || range AS body FROM range(3)"
        )
    vendor = {"conn_type": provider, "host": VENDORS[provider].base_url(url), "password": "any"}
    os.environ |= {
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW_CONN_WAREHOUSE": json.dumps({"conn_type": "duckdb", "host": str(path)}),
        f"AIRFLOW_CONN_{provider.upper()}_DEFAULT": json.dumps(vendor),
        "AIRFLOW__BATCH_LLM__WORKSPACE": f"{folder}/workspace",
    }
    operator = labeller(provider, deferrable=False)
    ti: Any = SimpleNamespace(dag_id="dag", run_id="run", task_id="label", map_index=-1, max_tries=0)
    codes = _entered(lambda: operator.execute({"ti": ti, "run_id": "run", "task": operator}))
    with duckdb.connect(str(path)) as connection:
        (landed,) = connection.execute("SELECT count(*) FROM labels").fetchone() or (0,)
    assert landed == 3, "the walk did not come to its end"
    return Counter(str(Path(code.co_filename).relative_to(_PACKAGE)) for code in codes)


def _entered(run: Callable[[], object]) -> set[CodeType]:
    """Return the functions of the package that `run` enters, in any thread."""
    codes: set[CodeType] = set()

    def enter(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        is_function = event == "call" and code.co_flags & inspect.CO_OPTIMIZED
        if is_function and code.co_filename.startswith(f"{_PACKAGE}/"):
            codes.add(code)

    threading.setprofile(enter)
    sys.setprofile(enter)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return codes


if __name__ == "__main__":
    main()
