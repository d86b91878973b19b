"""A whole stage, DuckDB to simulator to DuckDB, beside the same by hand with no safety at all, in the same run.

    python -m tests.benchmarks.stage --rows 100000 1000000

Each step runs in a process of its own: CPU seconds and peak resident memory are that process's. The loop by hand reads,
encodes, sends, decodes and inserts with the same drivers and SDK; it validates, records and deduplicates nothing. Which
rows have changed it finds by the MD5 of each, as it was when the answers landed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import duckdb

from airflow_batch_llm.simulator.handle import Simulator
from tests.vendors import OVER_HTTPX

STEPS = ("plan", "submit", "land")
BODY = 400
UNCHANGED_OF = 100  # of so many rows, all but one are answered already


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--provider", default="openai", choices=OVER_HTTPX)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    chosen = parser.parse_args()
    print(f"{'':26}{'rows':>10}{'CPU s':>9}{'by hand':>9}{'ratio':>7}{'peak MB':>9}{'by hand':>9}")
    for rows in chosen.rows:
        with tempfile.TemporaryDirectory() as folder:
            _measure(Path(folder), rows, chosen.provider, chosen.profile)


def _measure(folder: Path, rows: int, provider: str, profile: bool) -> None:
    with duckdb.connect(str(folder / "bench.duckdb")) as connection:
        connection.execute(
            f"CREATE TABLE tickets AS SELECT range AS id, rpad(range::text || ' ', {BODY}, 'lorem ipsum ') AS body "
            f"FROM range({rows})"
        )
    with Simulator(batch_seconds=3600) as simulator:
        _print("all new", rows, _steps(simulator, folder, "all", provider, profile))
        with duckdb.connect(str(folder / "bench.duckdb")) as connection:
            connection.execute(f"UPDATE tickets SET body = 'new ' || body WHERE id % {UNCHANGED_OF} = 0")
        _print("99 % unchanged", rows, _steps(simulator, folder, "changed", provider, profile))


def _steps(
    simulator: Simulator, folder: Path, name: str, provider: str, profile: bool
) -> dict[str, dict[str, dict[str, float]]]:
    """CPU and memory by who does it and step. Between sending and landing, the simulator executes the batches."""
    measured: dict[str, dict[str, dict[str, float]]] = {"ours": {}, "by hand": {}}
    for who, steps in measured.items():
        before = set(simulator.ledger()[provider]["batches"])
        for step in STEPS:
            steps[step] = _child(folder, who, step, name, provider, simulator.url, profile)
            if step == "submit":
                for batch_id in set(simulator.ledger()[provider]["batches"]) - before:
                    simulator.finish(batch_id)
    return measured


def _child(folder: Path, who: str, step: str, name: str, provider: str, url: str, profile: bool) -> Any:
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.stage_steps",
        str(folder),
        who,
        step,
        name,
        provider,
        url,
    ]
    done = subprocess.run([*command, *(["--profile"] if profile else [])], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{who} {step}: {done.stderr[-3000:]}")
    *shown, last = done.stdout.splitlines()
    print("\n".join(shown), end="\n" if shown else "")
    return json.loads(last)


def _print(title: str, rows: int, measured: dict[str, dict[str, dict[str, float]]]) -> None:
    ours, hand = measured["ours"], measured["by hand"]
    for step in STEPS:
        _line(f"{title}: {step}", rows, ours[step], hand[step])
    whole = [
        {"cpu": sum(part["cpu"] for part in parts.values()), "mb": max(part["mb"] for part in parts.values())}
        for parts in (ours, hand)
    ]
    _line(f"{title}: whole", rows, *whole)


def _line(title: str, rows: int, ours: dict[str, float], hand: dict[str, float]) -> None:
    ratio = ours["cpu"] / max(hand["cpu"], 0.01)
    print(
        f"{title:26}{rows:>10,}{ours['cpu']:>9.1f}{hand['cpu']:>9.1f}{ratio:>7.1f}{ours['mb']:>9.0f}{hand['mb']:>9.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
