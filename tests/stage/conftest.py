"""One simulator and one object store per module; both are forgotten before each test."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from airflow_batch_llm.providers import PROVIDERS
from airflow_batch_llm.simulator.handle import Simulator
from tests.stage.world import Bench, World, close_providers
from tests.store.servers import gcs_server


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Cloud Storage emulator."""
    with gcs_server(tmp_path_factory.mktemp("gcs")) as url:
        yield url


@pytest.fixture(scope="session")
def running() -> Iterator[Simulator]:
    with Simulator(batch_seconds=0) as simulator:
        yield simulator


@pytest.fixture(scope="session")
def running_vertex(storage: str) -> Iterator[Simulator]:
    with Simulator(batch_seconds=0, storage_url=storage) as simulator:
        yield simulator


@contextmanager
def _fresh(world: World) -> Iterator[Bench]:
    world.simulator.reset(clock=True)  # files have the machine's time, so years ahead of it they would be old
    world.begin()
    yield Bench(world)
    close_providers()
    world.simulator.reset()


def _world(folder: Path, provider: str, request: pytest.FixtureRequest) -> World:
    if provider != "vertex":
        return World(folder=folder, provider_name=provider, url=request.getfixturevalue("running").url)
    simulator = request.getfixturevalue("running_vertex")
    environ = {"STORAGE_EMULATOR_HOST": request.getfixturevalue("storage")}
    return World(folder=folder, provider_name=provider, url=simulator.url, environ=environ)


@pytest.fixture(params=list(PROVIDERS))
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A world for each provider."""
    world = _world(tmp_path, request.param, request)
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    with _fresh(world) as bench:
        yield bench


@pytest.fixture
def openai(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A world where batches can be recognised at any time."""
    with _fresh(_world(tmp_path, "openai", request)) as bench:
        yield bench


@pytest.fixture
def anthropic(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A world where batches can be recognised only once they have ended."""
    with _fresh(_world(tmp_path, "anthropic", request)) as bench:
        yield bench


@pytest.fixture
def vertex(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """A world where a batch that failed may hold answers."""
    world = _world(tmp_path, "vertex", request)
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    with _fresh(world) as bench:
        yield bench


assert os.name == "posix", "processes are killed here"
