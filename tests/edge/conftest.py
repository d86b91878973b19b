"""A real Airflow in this process: a migrated database, and Dags that are run by `dag.test()`."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest

from airflow_batch_llm.simulator.handle import Simulator
from tests.edge.dag_runs import run_dag

TICKETS = [
    (number, f"Ticket {number}", "The app crashes" if number % 2 else "Where is my invoice?")
    for number in range(1, 13)
]


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """Airflow's own tables, in the temporary home."""
    program = "from airflow.utils.db import initdb; initdb()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def simulator() -> Iterator[Simulator]:
    with Simulator(batch_seconds=0.2) as simulator:
        yield simulator


@pytest.fixture
def vendor(simulator: Simulator) -> Simulator:
    """The simulator without any memory."""
    simulator.reset()
    return simulator


@dataclass(frozen=True)
class World:
    """The connections of a test, and what they lead to."""

    simulator: Simulator
    folder: Path

    @property
    def duckdb_path(self) -> Path:
        return self.folder / "warehouse.duckdb"

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with duckdb.connect(self.duckdb_path) as connection:
            return connection.execute(sql).fetchall()

    def execute(self, sql: str) -> None:
        with duckdb.connect(self.duckdb_path) as connection:
            connection.execute(sql)

    def rows_charged(self, provider: str = "anthropic") -> int:
        return int(self.simulator.ledger()[provider]["rows"]["charged"])


@pytest.fixture
def world(
    vendor: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, airflow_database: None
) -> World:
    """A DuckDB file with twelve tickets, and connections to it and to the simulator."""
    world = World(simulator=vendor, folder=tmp_path)
    with duckdb.connect(world.duckdb_path) as connection:
        connection.execute("CREATE TABLE tickets (ticket_id INTEGER, subject VARCHAR, body VARCHAR)")
        connection.executemany("INSERT INTO tickets VALUES (?, ?, ?)", TICKETS)
    connections = {
        "warehouse": {"conn_type": "duckdb", "host": str(world.duckdb_path)},
        "anthropic_default": {"conn_type": "anthropic", "host": vendor.url, "password": "any"},
        "openai_default": {"conn_type": "openai", "host": vendor.openai_url, "password": "any"},
    }
    for conn_id, fields in connections.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__WORKSPACE", str(tmp_path / "workspace"))
    return world


@pytest.fixture
def run(airflow_database: None) -> Callable[..., Any]:
    return run_dag
