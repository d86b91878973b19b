"""A whole stage, DuckDB to simulator to DuckDB, beside the same by hand with no safety at all, in the same run.

    python -m tests.benchmarks.stage --rows 100000 1000000
    python -m tests.benchmarks.stage --rows 10000000 --alone

Each step runs in a process of its own: CPU seconds and peak resident memory are that process's. The loop by hand reads,
encodes, sends, decodes and inserts with the same drivers and SDK; it validates, records and deduplicates nothing. Which
rows have changed it finds by the MD5 of each, as it was when the answers landed. Alone, without the loop, each row must
have been paid once and answered once, and a second run over the same rows must pay for none.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from airflow_batch_llm.simulator.handle import Simulator
from tests.vendors import OVER_HTTPX

STEPS = ("plan", "submit", "land")
BODY = 400
UNCHANGED_OF = 100  # of so many rows, all but one are answered already


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """A table of tickets, a simulator, and how the steps are measured."""

    folder: Path
    rows: int
    chosen: argparse.Namespace
    simulator: Simulator

    def ask(self, sql: str) -> Any:
        with duckdb.connect(str(self.folder / "bench.duckdb")) as connection:
            return connection.execute(sql).fetchall()

    def measure(self, name: str) -> dict[str, dict[str, dict[str, float]]]:
        """CPU and memory by who does it and step. Between sending and landing, the simulator executes the batches."""
        measured: dict[str, dict[str, dict[str, float]]] = {}
        for who in ("ours",) if self.chosen.alone else ("ours", "by hand"):
            before = self._batches()
            measured[who] = {step: self._child(who, step, name) for step in ("plan", "submit")}
            for batch_id in self._batches() - before:
                self.simulator.finish(batch_id)
            measured[who]["land"] = self._child(who, "land", name)
        return measured

    def _batches(self) -> set[str]:
        return set(self.simulator.ledger()[self.chosen.provider]["batches"])

    def _child(self, who: str, step: str, name: str) -> Any:
        given = [str(self.folder), who, step, name, self.chosen.provider, self.simulator.url]
        command = [sys.executable, "-m", "tests.benchmarks.stage_steps", *given]
        profile = ["--profile"] if self.chosen.profile else []
        done = subprocess.run([*command, *profile], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{who} {step}: {done.stderr[-3000:]}")
        *shown, last = done.stdout.splitlines()
        print("\n".join(shown), end="\n" if shown else "")
        return json.loads(last)

    def check(self) -> None:
        """Raise unless each row was paid once and has its answer."""
        ledger = self.simulator.ledger()[self.chosen.provider]
        paid, twice = ledger["rows"]["charged"], ledger["duplicates"]["surplus_charges"]
        ((landed,),) = self.ask("SELECT count(DISTINCT id) FROM ours")
        if (paid, twice, landed) != (self.rows, 0, self.rows):
            raise RuntimeError(f"{paid} charges, {twice} of them for what was paid already, {landed} answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--provider", default="openai", choices=OVER_HTTPX)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--alone", action="store_true", help="do nothing by hand")
    chosen = parser.parse_args()
    print(f"{'':26}{'rows':>10}{'CPU s':>9}{'by hand':>9}{'ratio':>7}{'peak MB':>9}{'by hand':>9}")
    for rows in chosen.rows:
        with tempfile.TemporaryDirectory() as folder, Simulator(batch_seconds=3600) as simulator:
            _measure(_Bench(folder=Path(folder), rows=rows, chosen=chosen, simulator=simulator))


def _measure(bench: _Bench) -> None:
    bench.ask(
        f"CREATE TABLE tickets AS SELECT range AS id, rpad(range::text || ' ', {BODY}, 'lorem ipsum ') AS body "
        f"FROM range({bench.rows})"
    )
    _print("all new", bench.rows, bench.measure("all"))
    if bench.chosen.alone:
        bench.check()
        _print("none new", bench.rows, bench.measure("none"))
        bench.check()
    bench.ask(f"UPDATE tickets SET body = 'new ' || body WHERE id % {UNCHANGED_OF} = 0")
    _print("99 % unchanged", bench.rows, bench.measure("changed"))


def _print(title: str, rows: int, measured: dict[str, dict[str, dict[str, float]]]) -> None:
    for step in (*STEPS, "whole"):
        figures = [_whole(parts) if step == "whole" else parts[step] for parts in measured.values()]
        _line(f"{title}: {step}", rows, *figures)


def _whole(parts: dict[str, dict[str, float]]) -> dict[str, float]:
    return {
        "cpu": sum(part["cpu"] for part in parts.values()),
        "mb": max(part["mb"] for part in parts.values()),
    }


def _line(title: str, rows: int, ours: dict[str, float], hand: dict[str, float] | None = None) -> None:
    cpu, mb = f"{ours['cpu']:>9.1f}", f"{ours['mb']:>9.0f}"
    if hand is None:
        print(f"{title:26}{rows:>10,}{cpu}{'':16}{mb}", flush=True)
        return
    ratio = ours["cpu"] / max(hand["cpu"], 0.01)
    print(f"{title:26}{rows:>10,}{cpu}{hand['cpu']:>9.1f}{ratio:>7.1f}{mb}{hand['mb']:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
