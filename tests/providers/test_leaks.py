"""No key, no header and no prompt gets from a vendor's or a gateway's words into an error of the package or its chain."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from airflow_batch_llm.core.model import Call, Lease, ShardFile
from airflow_batch_llm.errors import InputError, ProviderError, Refused
from airflow_batch_llm.providers import PROVIDERS, connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.failures import detail, redacted, word
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.leaks import text_of
from tests.vendors import MODELS, OVER_HTTPX, VENDORS


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(batch_seconds=0.0) as simulator:
        yield simulator


class Canaries:
    """Secrets and a row that no source file holds, since a traceback quotes those."""

    def __init__(self) -> None:
        self.key, self.header, self.prompt = (f"canary-{kind}-{uuid4().hex}" for kind in ("k", "h", "p"))

    def found_in(self, text: str) -> list[str]:
        return [name for name, value in vars(self).items() if value in text or value[:24] in text]


@pytest.fixture
def canaries() -> Canaries:
    return Canaries()


def access(name: str, url: str, canaries: Canaries) -> Access:
    if name == "vertex":
        from google.oauth2.credentials import Credentials

        credentials: Any = Credentials
        options = {"credentials": credentials(canaries.key), "project": "p", "staging": "gs://bucket/folder"}
        return Access(base_url=url, options=options)
    headers = {"x-portkey-virtual": canaries.header}
    base = VENDORS[name].base_url(url)
    return Access(api_key=canaries.key, base_url=base, options={"default_headers": headers})


def shard(provider: Any, canaries: Canaries, folder: Path) -> ShardFile:
    call = Call(model=MODELS[provider.name])
    path = folder / "lines.jsonl"
    path.write_bytes(provider.encode(call).line("r-1-1", json.dumps(canaries.prompt).encode()) + b"\n")
    return ShardFile(path=path, token="r-1", call=call, requests=1, bytes=path.stat().st_size)


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_gateway_that_echoes_the_request_is_not_quoted(
    simulator: Simulator, canaries: Canaries, tmp_path: Path, name: str
) -> None:
    simulator.reset()
    echo = json.dumps({"messages": [{"role": "user", "content": canaries.prompt}]})
    said = (
        f"Not allowed: authorization=Bearer {canaries.key}, x-api-key: {canaries.key!r},"
        f" x-portkey-virtual {canaries.header if name != 'vertex' else ''} body {echo}"
    )
    for endpoint in ("create", "retrieve"):
        simulator.fault(
            kind="status", status=400, code=canaries.key, message=said, times=None, endpoint=endpoint
        )
    provider = connect(name, access(name, simulator.url, canaries))
    work = shard(provider, canaries, tmp_path)
    calls = [
        lambda: provider.check(
            ["projects/p/locations/l/batchPredictionJobs/1" if name == "vertex" else "batch_1"]
        ),
        lambda: provider.submit(
            work, "gs://bucket/folder/x/requests.jsonl", Lease(expires_at=time.time() + 60)
        ),
    ]
    try:
        for call in calls:
            with pytest.raises(Refused) as refused:
                call()
            assert refused.value.status == 400
            assert "Not allowed" in refused.value.detail, "what helps the reader of a log is kept"
            assert canaries.found_in(text_of(refused.value)) == []
    finally:
        provider.close()


@pytest.mark.parametrize("name", OVER_HTTPX)
@pytest.mark.parametrize("end", ["\n", "\r", "\x00"])
def test_a_key_that_no_header_can_carry_is_refused_at_once_and_not_quoted(
    simulator: Simulator, canaries: Canaries, name: str, end: str
) -> None:
    with pytest.raises(InputError, match="control character") as refused:
        Access(api_key=canaries.key + end)
    assert canaries.found_in(text_of(refused.value)) == []

    # A client that somebody else has made is not looked into; the HTTP library quotes the header that it refuses.
    module = pytest.importorskip(name)
    client_class = module.Anthropic if name == "anthropic" else module.OpenAI
    ready = Access(client=lambda: client_class(api_key=canaries.key + end, base_url=simulator.openai_url))
    provider = connect(name, ready)
    with pytest.raises(ProviderError, match="cannot be sent") as refused_later:
        provider.check(["batch_1"])
    assert canaries.found_in(text_of(refused_later.value)) == []
    assert not refused_later.value.retryable


@pytest.mark.parametrize("name", OVER_HTTPX)
def test_a_server_that_cannot_be_reached_is_named_by_the_systems_words(canaries: Canaries, name: str) -> None:
    provider = connect(name, access(name, "http://127.0.0.1:9", canaries))
    work = Lease(expires_at=time.time() + 5)
    with pytest.raises(ProviderError, match="refused") as refused:
        provider.submit(
            ShardFile(path=Path("/dev/null"), token="r-1", call=Call(model="m"), requests=0, bytes=0),
            "f",
            work,
        )
    assert canaries.found_in(text_of(refused.value)) == []


def test_a_row_of_the_results_keeps_the_vendors_words_and_no_key(canaries: Canaries) -> None:
    provider = connect("openai", Access(api_key=canaries.key))
    line = {
        "custom_id": "r-1-1",
        "response": {
            "status_code": 400,
            "body": {
                "error": {"code": "bad", "message": f"Too long. {canaries.key} Authorization: {canaries.key}"}
            },
        },
        "error": None,
    }
    message = provider.decode(json.dumps(line).encode()).error_message
    assert message is not None
    assert message.startswith("Too long.")
    assert canaries.found_in(message) == []


def test_ordinary_words_are_kept() -> None:
    words = "max_tokens: 100000 > 64000, which is the maximum; see the token limit of basic authentication."
    assert detail(words) == redacted(words) == words
    assert word("invalid_request_error") == "invalid_request_error"
    assert word("two words") == word(None) == word("sk-ant-0123456789abcdef") == ""
    assert detail("one\ntwo\x1b[31m") == "one two [31m"
