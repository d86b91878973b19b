"""OpenAI's protocol, driven by its SDK."""

from typing import Any

import jsonschema
import openai
import orjson
import pytest

from airflow_batch_llm.simulator.handle import Simulator
from tests.simulator.clients import (
    GPT,
    SCHEMA,
    jsonl,
    openai_batch,
    openai_client,
    openai_line,
    openai_results,
)

DAY = 86_400
MONTH = 30 * DAY


def ended(simulator: Simulator, client: openai.OpenAI, batch: Any) -> Any:
    simulator.finish(batch.id)
    return client.batches.retrieve(batch.id)


def test_a_batch_runs_through_its_states_to_one_output_file(simulator: Simulator) -> None:
    simulator.turn(batch_seconds=1000)
    client = openai_client(simulator)
    batch = openai_batch(client, [openai_line("a"), openai_line("b")], metadata={"run": "x"})
    assert (batch.status, batch.metadata, batch.request_counts.total) == ("validating", {"run": "x"}, 0)
    assert batch.expires_at == batch.created_at + DAY
    simulator.clock(advance_seconds=200)
    while (batch := client.batches.retrieve(batch.id)).status == "validating":
        pass
    assert (batch.status, batch.model, batch.request_counts.total) == ("in_progress", GPT, 2)
    batch = ended(simulator, client, batch)
    assert (batch.status, batch.request_counts.completed, batch.error_file_id) == ("completed", 2, None)
    assert batch.finalizing_at is not None
    rows = openai_results(client, batch.output_file_id)
    assert rows.keys() == {"a", "b"}
    assert all(row["error"] is None and row["response"]["status_code"] == 200 for row in rows.values())


async def test_the_asynchronous_client_is_served_as_well(simulator: Simulator) -> None:
    client = openai.AsyncOpenAI(base_url=simulator.openai_url, api_key="any")
    file = await client.files.create(file=("in.jsonl", jsonl([openai_line("a")])), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id, endpoint="/v1/responses", completion_window="24h"
    )
    simulator.finish(batch.id)
    batch = await client.batches.retrieve(batch.id)
    async with client.files.with_streaming_response.content(batch.output_file_id or "") as answer:
        lines = [line async for line in answer.iter_lines()]
    assert len(lines) == 1
    await client.close()


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": GPT, "messages": [{"role": "user", "content": "My invoice is wrong."}], **fields}


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (
            "/v1/responses",
            {
                "model": GPT,
                "input": "x",
                "text": {"format": {"type": "json_schema", "name": "t", "schema": SCHEMA, "strict": True}},
            },
        ),
        (
            "/v1/chat/completions",
            chat(
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "t", "schema": SCHEMA, "strict": True},
                }
            ),
        ),
        (
            "/v1/chat/completions",
            chat(
                tools=[{"type": "function", "function": {"name": "t", "parameters": SCHEMA}}],
                tool_choice={"type": "function", "function": {"name": "t"}},
            ),
        ),
    ],
)
def test_an_answer_conforms_to_the_schema_however_it_is_asked_for(
    simulator: Simulator, endpoint: str, body: dict[str, Any]
) -> None:
    client = openai_client(simulator)
    batch = ended(
        simulator, client, openai_batch(client, [openai_line("a", body, url=endpoint)], endpoint=endpoint)
    )
    answer = openai_results(client, batch.output_file_id)["a"]["response"]["body"]
    if endpoint == "/v1/responses":
        text = answer["output"][0]["content"][0]["text"]
    else:
        message = answer["choices"][0]["message"]
        text = message["content"] or message["tool_calls"][0]["function"]["arguments"]
    jsonschema.validate(orjson.loads(text), SCHEMA)


@pytest.mark.parametrize("change", ["required", "additionalProperties"])
def test_a_schema_outside_the_strict_subset_is_a_400_row_in_the_error_file(
    simulator: Simulator, change: str
) -> None:
    schema = {key: value for key, value in SCHEMA.items() if key != change}
    body = {
        "model": GPT,
        "input": "x",
        "text": {"format": {"type": "json_schema", "name": "t", "schema": schema, "strict": True}},
    }
    client = openai_client(simulator)
    batch = ended(simulator, client, openai_batch(client, [openai_line("bad", body), openai_line("good")]))
    assert (batch.status, batch.request_counts.failed) == ("completed", 1)
    row = openai_results(client, batch.error_file_id)["bad"]
    assert row["error"] is None
    assert row["response"]["status_code"] == 400
    assert row["response"]["body"]["error"]["code"] == "invalid_json_schema"
    assert openai_results(client, batch.output_file_id).keys() == {"good"}


def test_a_batch_whose_rows_all_fail_is_completed_without_an_output_file(simulator: Simulator) -> None:
    client = openai_client(simulator)
    batch = ended(simulator, client, openai_batch(client, [openai_line("a", {"model": GPT})]))
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert batch.error_file_id is not None


@pytest.mark.parametrize(
    ("rows", "code", "line"),
    [
        ([openai_line("a"), openai_line("a")], "duplicate_custom_id", 2),
        ([openai_line("a"), openai_line("b", {"model": "gpt-5", "input": "x"})], "mismatched_model", 2),
        ([openai_line("a", url="/v1/embeddings")], "invalid_url", 1),
        ([openai_line("a", {"model": "no-such-model", "input": "x"})], "model_not_found", 1),
        ([openai_line("a", {"model": GPT, "input": "x", "stream": True})], "streaming_unsupported", 1),
        ([openai_line("")], "missing_required_parameter", 1),
        ([openai_line("a", {"input": "x"})], "invalid_request", 1),
        ([], "empty_file", None),
        ([openai_line(f"r{n}") for n in range(50_001)], "too_many_tasks", None),
    ],
)
def test_the_first_bad_line_fails_the_whole_batch_afterwards(
    simulator: Simulator, rows: list[Any], code: str, line: int | None
) -> None:
    client = openai_client(simulator)
    batch = ended(simulator, client, openai_batch(client, rows))
    assert batch.status == "failed"
    assert batch.errors is not None
    (error,) = batch.errors.data
    assert (error.code, error.line) == (code, line)
    assert simulator.ledger()["openai"]["rows"]["executed"] == 0


def test_a_line_that_is_not_json_fails_the_whole_batch(simulator: Simulator) -> None:
    client = openai_client(simulator)
    file = client.files.create(file=("in.jsonl", jsonl([openai_line("a")]) + b"{nope\n"), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    batch = ended(simulator, client, batch)
    assert batch.errors is not None
    assert [(error.code, error.line) for error in batch.errors.data or ()] == [("invalid_json_line", 2)]


def test_an_unknown_input_file_fails_the_batch(simulator: Simulator) -> None:
    client = openai_client(simulator)
    batch = client.batches.create(input_file_id="file-x", endpoint="/v1/responses", completion_window="24h")
    assert ended(simulator, client, batch).errors.data[0].code == "invalid_request"


def test_the_enqueued_token_limit_fails_a_batch_until_another_has_ended(simulator: Simulator) -> None:
    simulator.turn(batch_seconds=1000, enqueued_tokens=30)
    client = openai_client(simulator)
    body = {"model": GPT, "input": "x" * 80}
    first = openai_batch(client, [openai_line("a", body)])
    simulator.clock(advance_seconds=200)
    second = openai_batch(client, [openai_line("a", body)])
    failed = ended(simulator, client, second)
    assert (failed.status, failed.errors.data[0].code) == ("failed", "token_limit_exceeded")
    simulator.finish(first.id)
    assert ended(simulator, client, openai_batch(client, [openai_line("a", body)])).status == "completed"


def test_the_enqueued_token_limit_can_answer_the_creation_instead(simulator: Simulator) -> None:
    simulator.turn(enqueued_tokens=1, enqueued_answer="429")
    with pytest.raises(openai.RateLimitError) as raised:
        openai_batch(openai_client(simulator), [openai_line("a")])
    assert raised.value.code == "token_limit_exceeded"


def test_half_of_an_expired_batch_is_in_each_file(simulator: Simulator) -> None:
    simulator.fault(provider="openai", kind="expire", share=0.5)
    client = openai_client(simulator)
    batch = ended(simulator, client, openai_batch(client, [openai_line(f"r{n}") for n in range(4)]))
    assert batch.status == "expired"
    assert len(openai_results(client, batch.output_file_id)) == 2
    errors = openai_results(client, batch.error_file_id)
    assert {row["error"]["code"] for row in errors.values()} == {"batch_expired"}
    assert batch.usage.input_tokens == simulator.ledger()["openai"]["tokens"]["input"]


def test_a_cancelled_batch_is_cancelling_and_then_cancelled(simulator: Simulator) -> None:
    simulator.turn(batch_seconds=1000)
    client = openai_client(simulator)
    batch = openai_batch(client, [openai_line("a")])
    simulator.clock(advance_seconds=200)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(simulator, client, batch)
    assert (batch.status, batch.output_file_id) == ("cancelled", None)
    simulator.reset()
    with pytest.raises(openai.NotFoundError):
        client.batches.cancel(batch.id)


def test_files_expire_by_the_virtual_clock(simulator: Simulator) -> None:
    client = openai_client(simulator)
    file = client.files.create(
        file=("in.jsonl", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    batch = openai_batch(
        client, [openai_line("a")], output_expires_after={"anchor": "created_at", "seconds": 7200}
    )
    batch = ended(simulator, client, batch)
    simulator.clock(advance_seconds=3601)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert openai_results(client, batch.output_file_id)
    simulator.clock(advance_seconds=3600)
    with pytest.raises(openai.NotFoundError):
        client.files.content(batch.output_file_id)


def test_files_without_an_expiry_of_their_own_live_thirty_days(simulator: Simulator) -> None:
    client = openai_client(simulator)
    file = client.files.create(file=("in.jsonl", b"{}"), purpose="batch")
    assert file.expires_at == file.created_at + MONTH


def test_files_are_listed_newest_first_and_gone_once_deleted(simulator: Simulator) -> None:
    client = openai_client(simulator)
    ids = [client.files.create(file=("in.jsonl", b"{}"), purpose="batch").id for _ in range(3)]
    assert [file.id for file in client.files.list(purpose="batch", limit=2)] == ids[::-1]
    assert client.files.delete(ids[0]).deleted
    assert [file.id for file in client.files.list()] == [ids[2], ids[1]]
    with pytest.raises(openai.NotFoundError):
        client.files.content(ids[0])


def test_only_jsonl_is_taken_for_batches(simulator: Simulator) -> None:
    with pytest.raises(openai.BadRequestError, match=r"\.jsonl"):
        openai_client(simulator).files.create(file=("in.csv", b"a,b"), purpose="batch")


def test_batches_are_listed_newest_first_in_pages(simulator: Simulator) -> None:
    client = openai_client(simulator)
    ids = [openai_batch(client, [openai_line("a")]).id for _ in range(3)]
    assert [batch.id for batch in client.batches.list(limit=2)] == ids[::-1]


@pytest.mark.parametrize("missing", ["input_file_id", "endpoint", "completion_window"])
def test_a_missing_parameter_of_a_creation_is_refused_at_once(simulator: Simulator, missing: str) -> None:
    body = {"input_file_id": "file-1", "endpoint": "/v1/responses", "completion_window": "24h"}
    del body[missing]
    with pytest.raises(openai.BadRequestError) as raised:
        openai_client(simulator).post("/batches", body=body, cast_to=object)
    assert (raised.value.code, raised.value.param) == ("missing_required_parameter", missing)


def test_embeddings_are_unit_vectors_of_the_length_that_was_asked_for(simulator: Simulator) -> None:
    client = openai_client(simulator)
    body = {"model": "text-embedding-3-small", "input": "hello", "dimensions": 8}
    line = openai_line("a", body, url="/v1/embeddings")
    batch = ended(simulator, client, openai_batch(client, [line], endpoint="/v1/embeddings"))
    row = openai_results(client, batch.output_file_id)["a"]["response"]["body"]
    vector = row["data"][0]["embedding"]
    assert len(vector) == 8
    assert sum(value * value for value in vector) == pytest.approx(1)
    direct = client.embeddings.create(model="text-embedding-3-small", input=["hello"], dimensions=8)
    assert direct.data[0].embedding == pytest.approx(vector)
    assert batch.usage.input_tokens == row["usage"]["prompt_tokens"] == 2


def test_the_real_time_endpoints_answer_and_count(simulator: Simulator) -> None:
    client = openai_client(simulator)
    response = client.responses.create(model=GPT, input="My invoice is wrong.")
    assert response.output_text
    counted = client.responses.input_tokens.count(model=GPT, input="My invoice is wrong.")
    assert response.usage is not None
    assert counted.input_tokens == response.usage.input_tokens
    assert client.chat.completions.create(**chat()).choices[0].message.content
