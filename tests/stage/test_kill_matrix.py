"""A run killed by SIGKILL and retried pays each row once and lands each row once.

With OpenAI, which has the most verbs, a run is killed after every second verb that leaves a trace; with the others after
every fourth. Runs that take several routes are killed after every sixteenth, and those that
pass through BigQuery after every thirty-second. The command
`python -m tests.stage.kill_matrix` kills after every verb, with each.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import pytest

from airflow_batch_llm.simulator.handle import Simulator
from tests.emulators.servers import Emulators
from tests.stage.kill_matrix import Late, Routed, Scenario, Stores, points

# A file system in memory, where there is one: what is made durable for each record is proven with the store.
_MEMORY = Path("/dev/shm")

# A failure shows the point of the kill.
PARTS = 4


class KilledAndRetried:
    """The cases that each provider inherits."""

    provider: ClassVar[str]
    every: ClassVar[int] = 4
    points: ClassVar[tuple[str, ...]] = ()  # of an undisturbed run, found once

    @pytest.fixture
    def environ(self) -> Mapping[str, str]:
        return {}

    @pytest.fixture
    def folder(self) -> Iterator[Path]:
        with TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None) as folder:
            yield Path(folder)

    @pytest.fixture
    def scenario(self, running: Simulator, environ: Mapping[str, str]) -> Scenario:
        return Scenario(url=running.url, provider=self.provider, environ=dict(environ))

    @pytest.mark.parametrize("part", range(PARTS))
    def test_costs_nothing_and_loses_nothing(self, scenario: Scenario, folder: Path, part: int) -> None:
        kind = type(self)
        kind.points = kind.points or tuple(scenario.undisturbed(folder / "undisturbed").verbs)
        failed = {}

        for kill in list(points(kind.points, every=False))[part * self.every :: PARTS * self.every]:
            try:
                scenario.killed(folder / str(kill.point), kill)
            except AssertionError as error:
                failed[f"after {kill.point} {kind.points[kill.point - 1]}"] = str(error)

        assert failed == {}


class TestAnthropic(KilledAndRetried):
    provider = "anthropic"


class TestOpenAI(KilledAndRetried):
    provider = "openai"
    every = 2


class TestRoutedOpenAI(KilledAndRetried):
    provider = "openai"
    every = 16

    @pytest.fixture
    def scenario(self, running: Simulator, environ: Mapping[str, str]) -> Scenario:
        return Routed(url=running.url, provider=self.provider, environ=dict(environ))


class TestLateOpenAI(KilledAndRetried):
    provider = "openai"
    every = 16

    @pytest.fixture
    def scenario(self, running: Simulator, environ: Mapping[str, str]) -> Scenario:
        return Late(url=running.url, provider=self.provider, environ=dict(environ))


class TestVertex(KilledAndRetried):
    provider = "vertex"

    @pytest.fixture
    def environ(self, storage: str) -> Mapping[str, str]:
        return {"STORAGE_EMULATOR_HOST": storage}

    @pytest.fixture
    def scenario(self, running_vertex: Simulator, environ: Mapping[str, str]) -> Scenario:
        return Scenario(url=running_vertex.url, provider=self.provider, environ=dict(environ))


class TestVertexTables(KilledAndRetried):
    provider = "vertex"
    every = 32

    @pytest.fixture(scope="class")
    @classmethod
    def stores(cls, emulators: Emulators) -> Stores:
        return Stores.tables(emulators.bigquery)

    @pytest.fixture(scope="class")
    @classmethod
    def tables(cls, stores: Stores) -> Iterator[Simulator]:
        with Simulator(batch_seconds=0, **stores.options) as simulator:
            yield simulator

    @pytest.fixture
    def scenario(self, tables: Simulator, stores: Stores) -> Scenario:
        return Scenario(
            url=tables.url, provider=self.provider, environ=stores.environ, staging=stores.staging
        )
