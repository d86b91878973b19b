"""The example Dags as they stand: their files are read as Airflow reads them, and run against loopback."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_batch_llm.demo import warehouse
from airflow_batch_llm.demo.command import connections
from airflow_batch_llm.simulator.handle import Simulator
from tests.edge import dag_runs
from tests.edge.conftest import airflow_database
from tests.edge.dag_runs import run_dag, states

__all__ = ["airflow_database"]

DAGS = Path(__file__).resolve().parents[2] / "dags"


@dataclass(frozen=True)
class Stand:
    """The simulator and a DuckDB file with tickets, for the Dags of a test."""

    simulator: Simulator
    folder: Path

    @property
    def inbox(self) -> Path:
        return self.folder / "inbox"

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        return warehouse.ask(self.folder / "warehouse.duckdb", sql)

    def number(self, sql: str) -> int:
        return int(self.ask(sql)[0][0])

    def change(self, count: int) -> None:
        warehouse.change(self.folder / "warehouse.duckdb", count)

    def charged(self, provider: str = "anthropic") -> int:
        return int(self.simulator.ledger()[provider]["rows"]["charged"])


def read_dags(folder: Path = DAGS) -> dict[str, Any]:
    """Read all example Dags again: some look at the environment."""
    return dag_runs.read_dags(folder, folder)


def run_example(name: str, **options: Any) -> Any:
    """Run an example Dag. It must succeed without a retry, since `dag.test()` really waits before one."""
    dag = read_dags()[name]
    dag.deadline = None  # `dag.test()` of Airflow 3.3 cannot end a run whose Dag has one
    for task in dag.tasks:
        task.retries = 0
    done = run_dag(dag, **options)
    assert set(states(done).values()) == {"success"}, states(done)
    return done


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(batch_seconds=0.1, responder="airflow_batch_llm.demo.warehouse:respond") as simulator:
        yield simulator


@pytest.fixture
def stand(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, airflow_database: None
) -> Stand:
    """Sixty tickets of the last three days, and the connections that the Dags name by default."""
    simulator.reset()
    stand = Stand(simulator=simulator, folder=tmp_path)
    path = tmp_path / "warehouse.duckdb"
    warehouse.seed(path, 60, datetime.now(UTC).date())
    for name, fields in connections(simulator.url, path).items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(fields))
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("BATCH_LLM_INBOX", str(stand.inbox))
    return stand
