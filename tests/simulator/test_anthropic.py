"""Anthropic's protocol, driven by its SDK."""

from typing import Any

import anthropic
import jsonschema
import orjson
import pytest

from airflow_batch_llm.simulator.handle import Simulator
from tests.simulator.clients import SCHEMA, anthropic_client, anthropic_requests, message_params

DAY = 86_400


def results(client: anthropic.Anthropic, batch_id: str) -> dict[str, Any]:
    return {row.custom_id: row.result for row in client.messages.batches.results(batch_id)}


def finished(simulator: Simulator, requests: list[Any], **options: Any) -> dict[str, Any]:
    client = anthropic_client(simulator, **options)
    batch = client.messages.batches.create(requests=requests)
    simulator.finish(batch.id)
    return results(client, batch.id)


def test_a_batch_runs_from_creation_to_results(simulator: Simulator) -> None:
    simulator.turn(batch_seconds=1000)
    client = anthropic_client(simulator)
    batch = client.messages.batches.create(requests=anthropic_requests(3))
    assert (batch.processing_status, batch.request_counts.processing) == ("in_progress", 3)
    assert batch.results_url is None
    assert (batch.expires_at - batch.created_at).total_seconds() == DAY
    simulator.finish(batch.id)
    ended = client.messages.batches.retrieve(batch.id)
    assert (ended.processing_status, ended.request_counts.succeeded) == ("ended", 3)
    assert ended.results_url is not None
    assert ended.results_url.startswith(simulator.url)
    assert results(client, batch.id).keys() == {"r-0", "r-1", "r-2"}


async def test_the_asynchronous_client_is_served_as_well(simulator: Simulator) -> None:
    client = anthropic.AsyncAnthropic(base_url=simulator.url, api_key="any")
    batch = await client.messages.batches.create(requests=anthropic_requests(2))
    simulator.finish(batch.id)
    found = [row.custom_id async for row in await client.messages.batches.results(batch.id)]
    assert sorted(found) == ["r-0", "r-1"]
    await client.close()


def test_an_answer_conforms_to_the_schema_that_the_request_carries(simulator: Simulator) -> None:
    output = {"format": {"type": "json_schema", "schema": SCHEMA}}
    rows = finished(simulator, anthropic_requests(20, output_config=output))
    answers = [orjson.loads(row.message.content[0].text) for row in rows.values()]
    for answer in answers:
        jsonschema.validate(answer, SCHEMA)
    assert {answer["label"] for answer in answers} == {"billing", "bug", "question"}


def test_a_forced_tool_is_called_with_input_that_conforms(simulator: Simulator) -> None:
    tools = [{"name": "label", "input_schema": SCHEMA}]
    rows = finished(
        simulator, anthropic_requests(1, tools=tools, tool_choice={"type": "tool", "name": "label"})
    )
    message = rows["r-0"].message
    assert message.stop_reason == "tool_use"
    jsonschema.validate(message.content[0].input, SCHEMA)


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
def test_a_sampling_parameter_is_an_error_of_the_row_in_the_newest_version_only(
    simulator: Simulator, name: str
) -> None:
    requests = [*anthropic_requests(1), {"custom_id": "bad", "params": message_params(**{name: 1})}]
    rows = finished(simulator, requests)
    assert rows["r-0"].type == "succeeded"
    assert rows["bad"].type == "errored"
    assert rows["bad"].error.error.type == "invalid_request_error"
    old = finished(simulator, requests, default_headers={"anthropic-version": "2023-06-01"})
    assert old["bad"].type == "succeeded"


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"model": "claude-no-such"}, "not_found_error"),
        ({"max_tokens": 10_000_000}, "invalid_request_error"),
        ({"stream": True}, "invalid_request_error"),
        ({"messages": []}, "invalid_request_error"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            "invalid_request_error",
        ),
    ],
)
def test_what_is_wrong_inside_the_params_is_seen_only_when_the_row_runs(
    simulator: Simulator, params: dict[str, Any], kind: str
) -> None:
    rows = finished(
        simulator, [{"custom_id": "bad", "params": message_params(**params)}, *anthropic_requests(1)]
    )
    assert rows["bad"].error.error.type == kind
    assert rows["r-0"].type == "succeeded"
    assert simulator.ledger()["anthropic"]["rows"]["charged"] == 1


def test_a_recursive_schema_is_an_error_of_the_row(simulator: Simulator) -> None:
    node = {
        "type": "object",
        "properties": {"next": {"$ref": "#/$defs/node"}},
        "required": ["next"],
        "additionalProperties": False,
    }
    schema = {"$ref": "#/$defs/node", "$defs": {"node": node}}
    output = {"format": {"type": "json_schema", "schema": schema}}
    assert finished(simulator, anthropic_requests(1, output_config=output))["r-0"].type == "errored"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "a"], "Duplicate"),
        (["with space"], "pattern"),
        (["x" * 65], "pattern"),
        ([""], "pattern"),
        ([None], "requests.0.custom_id"),
        ([], "at least 1 item"),
    ],
)
def test_a_bad_custom_id_refuses_the_whole_batch_at_once(
    simulator: Simulator, ids: list[Any], message: str
) -> None:
    requests: list[Any] = [
        {"params": message_params(), **({} if each is None else {"custom_id": each})} for each in ids
    ]
    with pytest.raises(anthropic.BadRequestError, match=message):
        anthropic_client(simulator).messages.batches.create(requests=requests)
    assert simulator.ledger()["anthropic"]["batches"] == []


def test_results_of_a_running_batch_are_not_found(simulator: Simulator) -> None:
    simulator.turn(batch_seconds=1000)
    client = anthropic_client(simulator)
    batch = client.messages.batches.create(requests=anthropic_requests(1))
    with pytest.raises(anthropic.NotFoundError):
        client.get(f"/v1/messages/batches/{batch.id}/results", cast_to=str)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.batches.delete(batch.id)


def test_lists_are_paged_newest_first_in_both_directions(simulator: Simulator) -> None:
    client = anthropic_client(simulator)
    ids = [client.messages.batches.create(requests=anthropic_requests(1)).id for _ in range(5)]
    assert [batch.id for batch in client.messages.batches.list(limit=2)] == ids[::-1]
    page = client.messages.batches.list(limit=2, before_id=ids[0])
    assert [batch.id for batch in page.data] == [ids[2], ids[1]]
    assert page.has_more


def test_a_new_batch_is_absent_from_the_list_while_the_list_lags(simulator: Simulator) -> None:
    simulator.turn(list_lag=60)
    client = anthropic_client(simulator)
    batch = client.messages.batches.create(requests=anthropic_requests(1))
    assert client.messages.batches.list().data == []
    assert client.messages.batches.retrieve(batch.id).id == batch.id
    simulator.clock(advance_seconds=61)
    assert [each.id for each in client.messages.batches.list()] == [batch.id]


def test_a_cancelled_batch_keeps_what_was_executed(simulator: Simulator) -> None:
    simulator.turn(batch_seconds=1000, cancelled_share=0.5)
    client = anthropic_client(simulator)
    batch = client.messages.batches.create(requests=anthropic_requests(4))
    canceling = client.messages.batches.cancel(batch.id)
    assert canceling.processing_status == "canceling"
    simulator.finish(batch.id)
    counts = client.messages.batches.retrieve(batch.id).request_counts
    assert (counts.succeeded, counts.canceled) == (2, 2)
    assert client.messages.batches.cancel(batch.id).processing_status == "ended"
    assert simulator.ledger()["anthropic"]["rows"]["charged"] == 2


def test_a_batch_that_is_held_for_a_day_expires(simulator: Simulator) -> None:
    simulator.fault(provider="anthropic", kind="hold")
    client = anthropic_client(simulator)
    batch = client.messages.batches.create(requests=anthropic_requests(2))
    simulator.clock(advance_seconds=DAY - 60)
    assert client.messages.batches.retrieve(batch.id).processing_status == "in_progress"
    simulator.clock(advance_seconds=61)
    simulator.wait(batch.id)
    assert {row.type for row in results(client, batch.id).values()} == {"expired"}
    assert simulator.ledger()["anthropic"]["rows"] == {"executed": 0, "charged": 0, "expired": 2}


def test_results_are_gone_after_29_days_and_the_batch_is_not(simulator: Simulator) -> None:
    client = anthropic_client(simulator)
    batch = client.messages.batches.create(requests=anthropic_requests(1))
    simulator.finish(batch.id)
    simulator.clock(advance_seconds=29 * DAY)
    archived = client.messages.batches.retrieve(batch.id)
    assert archived.archived_at is not None
    assert archived.results_url is None


def test_a_deleted_batch_is_not_found(simulator: Simulator) -> None:
    client = anthropic_client(simulator)
    batch = client.messages.batches.create(requests=anthropic_requests(1))
    simulator.finish(batch.id)
    assert client.messages.batches.delete(batch.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(batch.id)


def test_a_message_answers_as_the_batch_would_and_tokens_are_counted_alike(simulator: Simulator) -> None:
    client = anthropic_client(simulator)
    params = message_params("My invoice is wrong.")
    message = client.messages.create(**params)
    counted = client.messages.count_tokens(model=params["model"], messages=params["messages"])
    assert counted.input_tokens == message.usage.input_tokens == 5
    in_batch = finished(simulator, [{"custom_id": "a", "params": params}])["a"].message
    assert in_batch.content == message.content


def test_models_that_think_put_a_thinking_block_first(simulator: Simulator) -> None:
    simulator.turn(reasoning_tokens=7)
    row = finished(simulator, anthropic_requests(1, model="claude-opus-5-5"))["r-0"].message
    assert [block.type for block in row.content] == ["thinking", "text"]
    assert row.usage.output_tokens_details.thinking_tokens == 7


def test_cached_tokens_are_counted_beside_the_rest_of_the_input(simulator: Simulator) -> None:
    simulator.turn(cached_tokens=3, cache_write_tokens=1)
    usage = finished(simulator, [{"custom_id": "a", "params": message_params("x" * 40)}])["a"].message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (6, 3, 1)
    tokens = simulator.ledger()["anthropic"]["tokens"]
    assert (tokens["input"], tokens["cached"], tokens["cache_write"]) == (10, 3, 1)


def test_an_answer_longer_than_max_tokens_is_cut(simulator: Simulator) -> None:
    row = finished(simulator, anthropic_requests(1, max_tokens=2))["r-0"].message
    assert row.stop_reason == "max_tokens"
    assert len(row.content[0].text) == 8


def test_a_call_without_a_known_version_is_refused(simulator: Simulator) -> None:
    client = anthropic_client(simulator, default_headers={"anthropic-version": "1999-01-01"})
    with pytest.raises(anthropic.BadRequestError, match="anthropic-version"):
        client.messages.create(**message_params())
