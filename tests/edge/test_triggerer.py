"""Before a task defers, it logs where it waits, and warns if Airflow's health page shows no triggerer."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from airflow.api_fastapi.core_api.routes.public.monitor import monitor_router
from airflow.jobs.job import Job
from airflow.utils.session import create_session
from fastapi import FastAPI

from tests.edge.conftest import World
from tests.edge.logs import told
from tests.edge.test_given_up import start


@pytest.fixture
def health(monkeypatch: pytest.MonkeyPatch, airflow_database: None) -> Iterator[str]:
    """Airflow's health page, with Airflow's own database behind it, on loopback."""
    app = FastAPI()
    app.include_router(monitor_router, prefix="/api/v2")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    _, port = server.servers[0].sockets[0].getsockname()
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", url)
    yield url
    server.should_exit = True
    thread.join()


@pytest.fixture
def triggerer() -> Iterator[None]:
    """A triggerer with a recent heartbeat."""
    job: Any = Job(job_type="TriggererJob", state="running")
    with create_session() as session:
        session.add(job)
    yield
    with create_session() as session:
        session.delete(session.get(Job, job.id))


def deferred(world: World) -> Any:
    world.simulator.fault(provider="anthropic", kind="hold", times=None)
    with told() as log:
        start("monday")
    assert log.tells("The task now waits in the triggerer")
    assert log.tells("airflow jobs check --job-type TriggererJob")
    return log


def test_no_triggerer_is_a_warning(world: World, health: str) -> None:
    assert deferred(world).warns(f"No triggerer is alive, says {health}/api/v2/monitor/health")


def test_a_triggerer_that_is_alive_is_no_warning(world: World, health: str, triggerer: None) -> None:
    assert not deferred(world).tells("No triggerer is alive")


def test_a_page_that_cannot_be_read_says_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://127.0.0.1:9")

    assert not deferred(world).tells("No triggerer is alive")
