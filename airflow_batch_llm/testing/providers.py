"""The contract of a provider adapter, as tests to inherit. They run through the real SDK against a server on loopback.

    class TestMyProvider(ProviderContract):
        provider_name, model = "mine", "some-model"

        @classmethod
        def serve(cls) -> AbstractContextManager[ProviderServer]:
            return MyServer()

Leave `serve` out for a vendor that the package's simulator speaks.

A case that an adapter cannot pass is overridden there with an `xfail` that says why.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import ClassVar

import pytest

from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.provider_answers import ReadsAnswers
from airflow_batch_llm.testing.provider_batches import CreatesOnce, WatchesBatches
from airflow_batch_llm.testing.provider_bench import Bench, Driver, ProviderServer, asynchronously
from airflow_batch_llm.testing.provider_now import AnswersInRealTime

__all__ = ["ProviderContract", "ProviderServer"]


class OnServer:
    """A provider on a server of its own. Every case starts from an empty one."""

    provider_name: ClassVar[str]
    model: ClassVar[str]

    @classmethod
    def serve(cls) -> AbstractContextManager[ProviderServer]:
        """Start the server that speaks the vendor's API: the package's simulator, or one of your own."""
        return Simulator(batch_seconds=0.0)

    def access(self, simulator: ProviderServer) -> Access:
        """Say how to reach the server."""
        return Access(api_key="any", base_url=simulator.url)

    @pytest.fixture(scope="class")
    @classmethod
    def simulator(cls) -> Iterator[ProviderServer]:
        with cls.serve() as simulator:
            yield simulator

    @pytest.fixture
    def bench(self, simulator: ProviderServer, tmp_path: Path) -> Iterator[Bench]:
        simulator.reset()
        provider = connect(self.provider_name, self.access(simulator))
        yield Bench(provider=provider, simulator=simulator, folder=tmp_path, model=self.model)
        provider.close()

    @pytest.fixture(params=["worker", "trigger"])
    def driver(self, bench: Bench, request: pytest.FixtureRequest) -> Iterator[Driver]:
        with ExitStack() as stack:
            trigger = request.param == "trigger"
            yield stack.enter_context(asynchronously(bench.provider)) if trigger else bench.provider


class ProviderContract(ReadsAnswers, CreatesOnce, WatchesBatches, AnswersInRealTime, OnServer):
    """Everything that an adapter promises."""
