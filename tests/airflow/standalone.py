"""A real Airflow on loopback with the example Dags, beside the simulator and a DuckDB file: `make airflow`.

What it leaves stays in `.airflow`, and is taken up again. A connection that the environment defines wins over those
to the simulator: AIRFLOW_CONN_ANTHROPIC_DEFAULT, for example, leads the same Dags to the vendor.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_batch_llm.demo import warehouse
from airflow_batch_llm.demo.command import RESPONDER, connections, last_night
from airflow_batch_llm.demo.local_airflow import LocalAirflow, Setup, interrupted_by_sigterm
from airflow_batch_llm.simulator.handle import Simulator
from tests.dags.reviews import write_reviews

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The processes to start, and their folder."""

    folder: Path
    dags: Path = ROOT / "dags"
    batch_seconds: float = 20.0
    tickets: int = 300
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The running processes."""

    airflow: LocalAirflow
    simulator: Simulator
    duckdb: Path
    inbox: Path

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        return warehouse.ask(self.duckdb, sql)


@contextmanager
def running(plan: Plan) -> Iterator[Stack]:
    """Start everything, and stop it at the end."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    path, inbox = plan.folder / "warehouse.duckdb", plan.folder / "inbox"
    if not path.exists():
        warehouse.seed(path, plan.tickets, last_night(datetime.now(UTC)))
        write_reviews(inbox, 12)
    with ExitStack() as started:
        simulator = started.enter_context(
            Simulator(
                data_dir=plan.folder / "simulator", batch_seconds=plan.batch_seconds, responder=RESPONDER
            )
        )
        setup = Setup(
            home=plan.folder / "airflow",
            dags=plan.dags,
            connections=connections(simulator.url, path),
            settings=plan.settings,
            env={"BATCH_LLM_INBOX": str(inbox), "BATCH_LLM_WATCHED_INBOX": str(inbox.with_name("watched"))},
            port=plan.port,
        )
        airflow = started.enter_context(LocalAirflow(setup))
        yield Stack(airflow=airflow, simulator=simulator, duckdb=path, inbox=inbox)


def main() -> None:
    """Start, say where, and stay until Ctrl-C."""
    print("airflow: it starts, which takes half a minute", flush=True)
    try:
        with interrupted_by_sigterm(), running(Plan(folder=ROOT / ".airflow", port=8080)) as stack:
            print(f"airflow: {stack.airflow.api.url}, nobody is asked who they are; Ctrl-C ends it")
            print(f"simulator: {stack.simulator.url}; warehouse: {stack.duckdb}", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("airflow: everything has been stopped")


if __name__ == "__main__":
    main()
