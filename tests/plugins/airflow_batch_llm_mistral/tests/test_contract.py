"""The contract of a provider, kept by one that lives in a distribution of its own and brings its own server."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

import pytest

from airflow_batch_llm.core.model import Call, Lease, Outcome, ShardFile
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.errors import InputError, Unavailable
from airflow_batch_llm.hooks.llm import llm_provider, split_model_id
from airflow_batch_llm.providers import check_name
from airflow_batch_llm.testing.provider_bench import Bench
from airflow_batch_llm.testing.providers import ProviderContract, ProviderServer
from tests.plugins.airflow_batch_llm_mistral.tests.server import MistralServer
from tests.plugins.installed import installed

NOTHING = ShardFile(
    path=Path("/dev/null"), token="r-1", call=Call(model="mistral-small-latest"), requests=0, bytes=0
)


@pytest.fixture(autouse=True, scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed("airflow_batch_llm_mistral", tmp_path_factory.mktemp("site")):
        yield


class TestMistral(ProviderContract):
    provider_name, model = "mistral", "mistral-small-latest"
    download_endpoint = "content"
    # Mistral has no word for a row that was refused, and does not mention rows that did not run.
    outcomes: ClassVar[Mapping[str, Outcome | None]] = {
        kind: ProviderContract.outcomes[kind]
        for kind in ("errored", "truncated", "empty", "odd", "surrogate", "missing")
    }

    @classmethod
    def serve(cls) -> AbstractContextManager[ProviderServer]:
        return MistralServer()

    def test_embeddings_are_vectors(self, bench: Bench) -> None:
        shard = bench.shard(2, call=Call(model="mistral-embed", vector=True))
        batch_id = bench.submit(shard)
        assert bench.outcomes(shard, batch_id) == {Outcome.SUCCEEDED: 2}
        assert {result.text for result in bench.results(batch_id).values()} == {"[0.25,0.5]"}


def test_a_connection_with_a_key_and_a_host_leads_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"conn_type": "generic", "host": "http://127.0.0.1:9", "password": "any"}
    monkeypatch.setenv("AIRFLOW_CONN_MISTRAL_DEFAULT", json.dumps(fields))
    provider = llm_provider(None, "mistral:mistral-small-latest", {"timeout": 1.5})
    with pytest.raises(Unavailable, match="Mistral cannot be reached"):
        provider.submit(NOTHING, "file", Lease(expires_at=time.time() + 5))


def test_a_model_id_without_a_provider_is_told_of_plug_ins_too() -> None:
    with pytest.raises(InputError, match="anthropic, mistral, openai, vertex"):
        split_model_id("mistral-small-latest")


def test_the_name_is_known_and_its_models_have_batch_prices() -> None:
    check_name("mistral")
    assert PriceList.of("mistral", "mistral-small-latest", at=1_790_000_000.0).known
