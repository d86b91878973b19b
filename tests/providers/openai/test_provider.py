"""Cases of OpenAI's own, beyond the contract."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from orjson import loads

from airflow_batch_llm.core.model import BatchState, Call, Outcome, Search
from airflow_batch_llm.errors import InputError, Later, MissingExtra
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.openai import OpenAIProvider
from airflow_batch_llm.providers.openai.flows import find, status_of
from airflow_batch_llm.providers.openai.lines import EMBEDDINGS, RESPONSES
from airflow_batch_llm.providers.steps import drive
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.provider_answers import LABEL
from airflow_batch_llm.testing.provider_bench import Bench

MODEL = "gpt-6-luna"


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(batch_seconds=0.0) as simulator:
        yield simulator


@pytest.fixture
def bench(simulator: Simulator, tmp_path: Path) -> Iterator[Bench]:
    simulator.reset()
    provider = OpenAIProvider(Access(api_key="any", base_url=simulator.openai_url))
    yield Bench(provider=provider, simulator=simulator, folder=tmp_path, model=MODEL)
    provider.close()


@pytest.mark.parametrize("schema", [None, LABEL])
def test_the_responses_endpoint_answers(bench: Bench, schema: Any) -> None:
    batch_id = bench.submit(bench.shard(2, call=Call(model=MODEL, endpoint=RESPONSES, schema=schema)))
    bench.ended(batch_id)
    results = bench.results(batch_id).values()
    assert [result.outcome for result in results] == [Outcome.SUCCEEDED] * 2
    assert all(result.usage.input_tokens for result in results)


def test_embeddings_are_vectors_and_their_tokens_are_not_counted_beforehand(bench: Bench) -> None:
    call = Call(model="text-embedding-3-small", endpoint=EMBEDDINGS)
    batch_id = bench.submit(bench.shard(2, call=call))
    bench.ended(batch_id)
    for result in bench.results(batch_id).values():
        assert all(isinstance(number, float) for number in loads(result.text or ""))
    assert bench.provider.count_tokens(call, ["hello"]) is None


def test_a_schema_beyond_the_strict_subset_is_answered_too(bench: Bench) -> None:
    schema = {
        "type": "object",
        "properties": {"counts": {"type": "object", "additionalProperties": {"type": "integer"}}},
        "required": ["counts"],
    }
    batch_id = bench.submit(bench.shard(1, call=Call(model=MODEL, schema=schema)))
    bench.ended(batch_id)
    (result,) = bench.results(batch_id).values()
    assert "counts" in loads(result.text or "")


def test_a_quota_of_waiting_tokens_that_is_full_means_later(bench: Bench) -> None:
    bench.simulator.turn(enqueued_tokens=1)
    status = bench.ended(bench.submit(bench.shard(5)))
    assert (status.state, status.later) == (BatchState.REJECTED, True)
    bench.simulator.turn(enqueued_answer="429")
    with pytest.raises(Later):
        bench.submit(bench.shard(5, number=2))


def test_a_file_that_is_refused_names_the_code_and_the_line_and_is_not_for_later(bench: Bench) -> None:
    shard = bench.shard(3)
    lines = shard.path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"gpt-6-luna", b"gpt-6-sol")
    shard.path.write_bytes(b"\n".join(lines))
    status = bench.ended(bench.submit(shard))
    assert (status.state, status.later) == (BatchState.REJECTED, False)
    assert status.reason == "mismatched_model at line 2 (body.model)"


@pytest.mark.parametrize(
    ("batch", "state", "reason", "later"),
    [
        ({"status": "validating"}, BatchState.RUNNING, None, False),
        ({"status": "in_progress"}, BatchState.RUNNING, None, False),
        ({"status": "finalizing"}, BatchState.RUNNING, None, False),
        ({"status": "cancelling"}, BatchState.RUNNING, None, False),
        ({"status": "a_status_of_tomorrow"}, BatchState.RUNNING, None, False),
        ({"status": "completed"}, BatchState.ENDED, None, False),
        ({"status": "expired"}, BatchState.ENDED, None, False),
        ({"status": "cancelled"}, BatchState.ENDED, None, False),
        ({"status": "failed"}, BatchState.REJECTED, "the provider gives no reason", False),
        (
            {"status": "failed", "errors": {"data": [{"code": "token_limit_exceeded", "line": None}]}},
            BatchState.REJECTED,
            "token_limit_exceeded",
            True,
        ),
        (
            {
                "status": "failed",
                "errors": {"data": [{"code": "token_limit_exceeded"}, {"code": "other", "line": 1}]},
            },
            BatchState.REJECTED,
            "token_limit_exceeded; other at line 1",
            False,
        ),
    ],
)
def test_each_status_has_one_meaning(
    batch: dict[str, Any], state: BatchState, reason: str | None, later: bool
) -> None:
    status = status_of(batch)
    assert (status.state, status.reason, status.later) == (state, reason, later)


def test_files_are_kept_as_long_as_the_connection_says(simulator: Simulator, tmp_path: Path) -> None:
    options = {"input_expires_after": 7200, "output_expires_after": 3600}
    provider = OpenAIProvider(Access(api_key="any", base_url=simulator.openai_url, options=options))
    bench = Bench(provider=provider, simulator=simulator, folder=tmp_path, model=MODEL)
    batch_id = bench.submit(bench.shard(1))
    bench.ended(batch_id)
    import openai

    with openai.OpenAI(api_key="any", base_url=simulator.openai_url) as client:
        batch = client.batches.retrieve(batch_id)
        sent, answered = (
            client.files.retrieve(file_id) for file_id in (batch.input_file_id, batch.output_file_id or "")
        )
    assert (sent.expires_at or 0) - sent.created_at == 7200
    assert (answered.expires_at or 0) - answered.created_at == 3600
    assert batch.metadata == {
        "airflow_batch_llm_run": bench.run,
        "airflow_batch_llm_shard": f"{bench.run}-0001",
    }
    provider.close()


class Forgetful:
    """A compatible server that drops metadata, and keeps the names of files."""

    def __init__(self, filename: str | None) -> None:
        self.filename = filename

    def get(self, path: str, **_: object) -> dict[str, Any]:
        if path.startswith("/files/"):
            return {"filename": self.filename}
        batch = {
            "id": "batch_1",
            "created_at": 100,
            "status": "in_progress",
            "metadata": None,
            "input_file_id": "f",
        }
        return {"data": [batch], "has_more": False}


@pytest.mark.parametrize(
    ("filename", "own_host", "tokens"),
    [
        ("b1-0001.jsonl", False, ["b1-0001"]),
        ("somebody.jsonl", False, []),
        ("b1-0001.jsonl", True, []),  # OpenAI itself keeps metadata: without any it is not ours
    ],
)
def test_where_metadata_is_dropped_the_name_of_the_file_tells(
    filename: str, own_host: bool, tokens: list[str]
) -> None:
    search = Search(run_tokens=frozenset({"b1"}), since=100.9, requests={"b1-0001": 3})
    found = drive(find(search, own_host=own_host), Forgetful(filename))
    assert [sighting.token for sighting in found] == tokens


def test_a_connection_without_a_key_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="no key"):
        OpenAIProvider(Access(base_url="http://127.0.0.1:1/v1")).check(["batch_1"])


def test_an_sdk_that_is_not_installed_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtra, match=r"airflow-batch-llm\[openai\]"):
        OpenAIProvider(Access(api_key="any")).check(["batch_1"])


def test_the_vendors_own_host_is_not_named_and_has_a_console() -> None:
    provider = OpenAIProvider(Access(api_key="any", base_url="https://api.openai.com/v1"))
    assert provider.host is None
    assert "batch_1" in (provider.console_url("batch_1") or "")
    assert OpenAIProvider(Access(base_url="https://api.groq.com/openai/v1")).host == "api.groq.com"


def test_an_option_that_the_client_does_not_have_is_named() -> None:
    provider = OpenAIProvider(Access(api_key="any", options={"staging": "gs://bucket"}))

    with pytest.raises(InputError, match=r"does not take an option: .*'staging'.* llm_hook_params"):
        provider.check(["b"])
