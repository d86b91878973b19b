"""Let 21 commands race for one budget, kill some of them with SIGKILL, and compare with what the vendor has charged.

Each command labels a table of its own; all share a workspace. A command that is killed is started again, as often as it
takes. Run by `python -m tests.benchmarks.budget_race`; arguments: the number of commands, and how many are killed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import yaml

from airflow_batch_llm.simulator.handle import Simulator

COMMAND = Path(sys.executable).parent / "airflow-batch-llm"
BUDGETS = "AIRFLOW__BATCH_LLM__BUDGETS"
ROWS = 10

#: Dollars per million tokens, so that a run costs dollars.
PRICES = {"input": 10_000.0, "output": 10_000.0, "batch_discount": 0.5}


def budgets(usd: float) -> str:
    return json.dumps({"support": {"usd": usd, "per": "all"}})


def write_spec(folder: Path, number: int, url: str) -> Path:
    database = folder / f"{number}.duckdb"
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            f"CREATE TABLE tickets AS SELECT i AS id, 'ticket {number} ' || i AS body FROM range({ROWS}) t(i)"
        )
    spec = folder / f"{number}.yaml"
    fields = {
        "model_id": "openai:gpt-5-mini",
        "provider": {"base_url": url, "api_key_env": "A_KEY"},
        "warehouse": {"duckdb": database.name},
        "source": {"table": "tickets"},
        "key": "id",
        "prompt": "{{ body }}",
        "output_type": ["billing", "bug", "other"],
        "target": f"labels_{number}",
        "max_cost_usd": None,
        "budget": "support",
        "guards": {"prices": {"gpt-5-mini": PRICES}, "min_success_ratio": 0},
        "pace": {"poll_interval": 0.2},
        "workspace": "workspace",
    }
    spec.write_text(yaml.safe_dump(fields))
    return spec


def start(spec: Path, environment: dict[str, str]) -> "subprocess.Popen[str]":
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([COMMAND, "run", str(spec)], env=environment, **pipes)


def shown(*arguments: str, environment: dict[str, str]) -> Any:
    done = subprocess.run(
        [COMMAND, *arguments, "--json"], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main(commands: int, kills: int) -> None:
    """Race, kill and repeat, and print the budget's state."""
    chance = random.Random(7)
    with TemporaryDirectory() as name, Simulator(batch_seconds=0.5) as simulator:
        folder = Path(name)
        specs = [write_spec(folder, number, simulator.openai_url) for number in range(commands)]
        environment = {**os.environ, "A_KEY": "any", BUDGETS: budgets(1e9)}
        price = shown("estimate", str(specs[0]), environment=environment)["estimate"]["usd"]
        limit = 10.01 * price
        environment[BUDGETS] = budgets(limit)
        running = {spec: start(spec, environment) for spec in specs}
        due = {spec: time.monotonic() + chance.uniform(5.0, 60.0) for spec in chance.sample(specs, kills)}
        ends: dict[Path, int] = {}
        killed = 0
        while len(ends) < len(specs):
            time.sleep(0.1)
            for spec, process in running.items():
                if (
                    spec not in ends
                    and spec in due
                    and process.poll() is None
                    and time.monotonic() > due[spec]
                ):
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    killed += 1
                    due[spec] += chance.uniform(5.0, 60.0) if killed < 3 * kills else 1e9
                    running[spec] = start(spec, environment)
                elif spec not in ends and process.poll() is not None:
                    ends[spec] = process.returncode
                    told = (process.stderr.read() if process.stderr else "").strip().splitlines()
                    assert process.returncode == 0 or "above the budget support" in told[-1], told[-3:]
        (book,) = shown("budget", str(folder / "workspace"), environment=environment)
        ledger = simulator.ledger()["openai"]
        tokens = ledger["tokens"]
        bill = (tokens["input"] + tokens["output"]) * 0.005
        done = sum(code == 0 for code in ends.values())
        print(f"{commands} commands, {killed} kills: {done} done, {commands - done} refused")
        print(f"budget ${limit:.4f}, spent ${book['spent_usd']:.4f}, bill ${bill:.4f}, held {book['holds']}")
        assert book["spent_usd"] <= limit
        assert abs(book["spent_usd"] - bill) < 0.005
        assert book["holds"] == []
        assert ledger["rows"]["charged"] == done * ROWS
        assert ledger["duplicates"]["surplus_charges"] == 0


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 21, int(sys.argv[2]) if len(sys.argv) > 2 else 7)
