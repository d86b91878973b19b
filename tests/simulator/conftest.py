"""One simulator and one object store per module; both are forgotten before each test."""

from collections.abc import Iterator

import pytest

from airflow_batch_llm.simulator.handle import Simulator
from tests.simulator.clients import close_clients
from tests.store.servers import gcs_server


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Cloud Storage emulator."""
    with gcs_server(tmp_path_factory.mktemp("gcs")) as url:
        yield url


@pytest.fixture(scope="module")
def running(storage: str) -> Iterator[Simulator]:
    with Simulator(batch_seconds=0, storage_url=storage) as simulator:
        yield simulator


@pytest.fixture
def simulator(running: Simulator) -> Simulator:
    running.reset()
    return running


@pytest.fixture(autouse=True)
def _closed_clients() -> Iterator[None]:
    yield
    close_clients()
