"""The contract of a provider, kept by Vertex: the simulator runs the jobs, a real object store holds their files."""

import os
from collections.abc import Iterator, Mapping
from typing import ClassVar

import pytest

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.providers import ProviderContract
from tests.store.servers import BUCKET, gcs_server


class TestVertex(ProviderContract):
    provider_name = "vertex"
    model = "gemini-2.5-flash"
    # Vertex does not mention rows that it had no time for.
    outcomes: ClassVar[Mapping[str, Outcome | None]] = {
        **ProviderContract.outcomes,
        "expired": None,
        "canceled": None,
    }

    @pytest.fixture(scope="class")
    def simulator(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
        with gcs_server(tmp_path_factory.mktemp("gcs")) as storage, pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", storage)
            with Simulator(batch_seconds=0.0, env=os.environ) as simulator:
                yield simulator

    def access(self, simulator: Simulator) -> Access:
        return Access(
            base_url=simulator.url, options={"project": "test-project", "staging": f"gs://{BUCKET}/staging"}
        )
