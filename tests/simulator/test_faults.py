"""Faults on demand, as the real SDK clients meet them."""

import time
import urllib.request
from typing import Any

import anthropic
import openai
import orjson
import pytest

from airflow_batch_llm.providers import PROVIDERS
from airflow_batch_llm.simulator.handle import Simulator
from tests.simulator.clients import (
    SCHEMA,
    anthropic_client,
    anthropic_requests,
    openai_batch,
    openai_client,
    openai_line,
    openai_results,
)


def raw_results(simulator: Simulator, batch_id: str) -> list[bytes]:
    """The result lines as they are on the wire."""
    with urllib.request.urlopen(f"{simulator.url}/v1/messages/batches/{batch_id}/results") as answer:
        return answer.read().split(b"\n")[:-1]


def finished(simulator: Simulator, count: int = 6, **params: Any) -> str:
    batch = anthropic_client(simulator).messages.batches.create(requests=anthropic_requests(count, **params))
    simulator.finish(batch.id)
    return batch.id


@pytest.mark.parametrize(("effect", "batches"), [("before", 0), ("after", 1)])
def test_a_creation_whose_connection_drops_takes_effect_or_does_not(
    simulator: Simulator, effect: str, batches: int
) -> None:
    simulator.fault(provider="anthropic", endpoint="create", kind="drop", effect=effect)
    client = anthropic_client(simulator)
    with pytest.raises(anthropic.APIConnectionError):
        client.messages.batches.create(requests=anthropic_requests(1))
    bill = simulator.ledger()["anthropic"]
    assert len(bill["batches"]) == batches
    assert bill["answers"]["create"] == {"0": 1}
    client.messages.batches.create(requests=anthropic_requests(1))


@pytest.mark.parametrize(("effect", "answered"), [("before", 1), ("after", 0)])
def test_a_creation_that_a_gateway_repeats_is_carried_out_twice_and_answered_once(
    simulator: Simulator, effect: str, answered: int
) -> None:
    simulator.fault(provider="any", endpoint="create", kind="repeat", effect=effect, times=None)

    batch = anthropic_client(simulator).messages.batches.create(requests=anthropic_requests(3))
    other = openai_batch(openai_client(simulator), [openai_line("a")], metadata={"whose": "ours"})

    ledger = simulator.ledger()
    assert list(ledger["anthropic"]["batches"])[answered] == batch.id
    assert list(ledger["openai"]["batches"])[answered] == other.id
    assert [len(ledger[vendor]["batches"]) for vendor in ("anthropic", "openai")] == [2, 2]
    assert ledger["anthropic"]["calls"]["create"] == 1
    listed = openai_client(simulator).batches.list().data
    assert [each.metadata for each in listed] == 2 * [{"whose": "ours"}]
    for batch_id in ledger["anthropic"]["batches"]:
        simulator.finish(batch_id)
    assert simulator.ledger()["anthropic"]["duplicates"] == {"contents": 3, "surplus_charges": 3}


def test_an_sdk_that_retries_a_dropped_creation_buys_twice_and_the_ledger_shows_it(
    simulator: Simulator,
) -> None:
    simulator.fault(provider="anthropic", endpoint="create", kind="drop", effect="after")
    client = anthropic_client(simulator, max_retries=2)
    client.messages.batches.create(requests=anthropic_requests(3))
    for batch_id in simulator.ledger()["anthropic"]["batches"]:
        simulator.finish(batch_id)
    bill = simulator.ledger()["anthropic"]
    assert len(bill["batches"]) == 2
    assert bill["duplicates"] == {"contents": 3, "surplus_charges": 3}
    assert len(list(simulator.charges(duplicates="true"))) == 6


@pytest.mark.parametrize("status", [408, 409, 413, 429, 500, 503, 529])
def test_an_error_status_comes_in_the_vendors_own_body(simulator: Simulator, status: int) -> None:
    simulator.fault(provider="any", endpoint="any", kind="status", status=status, times=2, retry_after=3)
    with pytest.raises(anthropic.APIStatusError) as one:
        anthropic_client(simulator).messages.batches.list()
    with pytest.raises(openai.APIStatusError) as other:
        openai_client(simulator).batches.list()
    assert one.value.status_code == other.value.status_code == status
    assert one.value.response.headers["retry-after"] == "3"
    assert one.value.body["type"] == "error"
    assert other.value.body["message"]


def test_a_429_without_retry_after_bears_no_such_header(simulator: Simulator) -> None:
    simulator.fault(provider="anthropic", endpoint="list", kind="status", status=429)
    with pytest.raises(anthropic.RateLimitError) as raised:
        anthropic_client(simulator).messages.batches.list()
    assert "retry-after" not in raised.value.response.headers
    assert raised.value.type == "rate_limit_error"


def test_limits_of_spending_bear_the_vendors_codes(simulator: Simulator) -> None:
    spend = {"kind": "status", "endpoint": "create", "status": 429}
    simulator.fault(provider="anthropic", code="enforced_spend_limit_reached", **spend)
    simulator.fault(provider="openai", code="insufficient_quota", **spend)
    with pytest.raises(anthropic.RateLimitError) as one:
        anthropic_client(simulator).messages.batches.create(requests=anthropic_requests(1))
    assert one.value.error_code == "enforced_spend_limit_reached"
    with pytest.raises(openai.RateLimitError) as other:
        openai_batch(openai_client(simulator), [openai_line("a")])
    assert (other.value.code, other.value.type) == ("insufficient_quota", "insufficient_quota")


def test_a_5xx_can_hide_that_the_creation_took_effect(simulator: Simulator) -> None:
    simulator.fault(provider="openai", endpoint="create", kind="status", status=500, effect="after")
    with pytest.raises(openai.InternalServerError):
        openai_batch(openai_client(simulator), [openai_line("a")])
    assert len(simulator.ledger()["openai"]["batches"]) == 1


def test_a_frozen_creation_takes_effect_after_its_client_has_given_up(simulator: Simulator) -> None:
    simulator.fault(provider="anthropic", endpoint="create", kind="delay", effect="before", seconds=1)
    with pytest.raises(anthropic.APITimeoutError):
        anthropic_client(simulator, timeout=0.3).messages.batches.create(requests=anthropic_requests(2))
    assert simulator.ledger()["anthropic"]["batches"] == []
    deadline = time.monotonic() + 20
    while not simulator.ledger()["anthropic"]["batches"]:
        assert time.monotonic() < deadline


def test_a_fault_strikes_the_nth_call_and_so_many_after_it(simulator: Simulator) -> None:
    simulator.fault(provider="anthropic", endpoint="list", kind="status", status=500, nth=2, times=2)
    client = anthropic_client(simulator)
    outcomes = []
    for _ in range(4):
        try:
            client.messages.batches.list()
        except anthropic.InternalServerError:
            outcomes.append("failed")
        else:
            outcomes.append("fine")
    assert outcomes == ["fine", "failed", "failed", "fine"]


@pytest.mark.parametrize("place", [{"lines": 2}, {"bytes": 900}])
def test_a_stream_of_results_breaks_in_the_middle_of_a_line(
    simulator: Simulator, place: dict[str, int]
) -> None:
    batch_id = finished(simulator)
    simulator.fault(provider="anthropic", endpoint="results", kind="cut", **place)
    client = anthropic_client(simulator)
    got = []
    with pytest.raises(Exception, match=r"(?i)peer closed|incomplete|json|connection"):  # noqa: PT012
        for row in client.messages.batches.results(batch_id):
            got.append(row)  # noqa: PERF402
    assert len(got) < 6
    assert len(list(client.messages.batches.results(batch_id))) == 6


def test_the_latency_knob_slows_only_the_calls_about_state(simulator: Simulator) -> None:
    batch_id = finished(simulator)
    simulator.turn(latency=5)
    with pytest.raises(anthropic.APITimeoutError):
        anthropic_client(simulator, timeout=0.3).messages.batches.retrieve(batch_id)
    assert len(raw_results(simulator, batch_id)) == 6


@pytest.mark.parametrize(
    ("kind", "stop"),
    [("refused", "refusal"), ("filtered", "refusal"), ("truncated", "max_tokens"), ("empty", "end_turn")],
)
def test_a_row_can_be_answered_badly(simulator: Simulator, kind: str, stop: str) -> None:
    simulator.fault(provider="anthropic", kind=kind, rows=[2])
    rows = {
        row["custom_id"]: row["result"]
        for row in map(orjson.loads, raw_results(simulator, finished(simulator)))
    }
    assert rows["r-2"]["message"]["stop_reason"] == stop
    assert rows["r-1"]["message"]["stop_reason"] == "end_turn"
    assert rows["r-1"]["message"]["content"]
    assert simulator.ledger()["anthropic"]["rows"]["charged"] == 6


@pytest.mark.parametrize("kind", ["errored", "expired", "canceled"])
def test_a_row_can_fail_without_being_charged(simulator: Simulator, kind: str) -> None:
    simulator.fault(provider="anthropic", kind=kind, custom_id="r-[12]", code="overloaded_error")
    rows = {
        row["custom_id"]: row["result"]
        for row in map(orjson.loads, raw_results(simulator, finished(simulator)))
    }
    assert [rows[f"r-{n}"]["type"] for n in range(4)] == ["succeeded", kind, kind, "succeeded"]
    assert simulator.ledger()["anthropic"]["rows"]["charged"] == 4


def test_a_row_fault_is_over_with_its_batch_so_the_row_can_be_sent_again(simulator: Simulator) -> None:
    simulator.fault(provider="anthropic", kind="errored", rows=[0], code="overloaded_error")
    first, second = finished(simulator, 1), finished(simulator, 1)
    (failed,), (fine,) = raw_results(simulator, first), raw_results(simulator, second)
    assert orjson.loads(failed)["result"]["error"]["error"]["type"] == "overloaded_error"
    assert orjson.loads(fine)["result"]["type"] == "succeeded"


def test_openai_rows_fail_in_the_error_file_with_their_status(simulator: Simulator) -> None:
    simulator.fault(provider="openai", kind="errored", rows=[0], status=429)
    simulator.fault(provider="openai", kind="expired", rows=[1])
    client = openai_client(simulator)
    batch = openai_batch(client, [openai_line(f"r{n}") for n in range(3)])
    simulator.finish(batch.id)
    batch = client.batches.retrieve(batch.id)
    errors = openai_results(client, batch.error_file_id)
    assert errors["r0"]["response"]["status_code"] == 429
    assert errors["r0"]["error"] is None
    assert errors["r1"]["error"]["code"] == "batch_expired"
    assert batch.status == "completed"


def test_result_lines_can_be_missing_doubled_broken_and_foreign(simulator: Simulator) -> None:
    for row, kind in enumerate(["missing", "duplicated", "bad_line", "foreign"]):
        simulator.fault(provider="anthropic", kind=kind, rows=[row])
    good, bad = [], 0
    for line in raw_results(simulator, finished(simulator)):
        try:
            good.append(orjson.loads(line)["custom_id"])
        except orjson.JSONDecodeError:
            bad += 1
    assert sorted(good) == ["foreign-r-3", "r-1", "r-1", "r-4", "r-5"]
    assert bad == 1
    assert simulator.ledger()["anthropic"]["rows"]["charged"] == 6


def test_results_are_shuffled_unless_told_otherwise(simulator: Simulator) -> None:
    shuffled = [orjson.loads(line)["custom_id"] for line in raw_results(simulator, finished(simulator, 30))]
    again = [orjson.loads(line)["custom_id"] for line in raw_results(simulator, finished(simulator, 30))]
    simulator.fault(provider="anthropic", kind="ordered")
    ordered = [orjson.loads(line)["custom_id"] for line in raw_results(simulator, finished(simulator, 30))]
    assert ordered == [f"r-{n}" for n in range(30)]
    assert shuffled == again != ordered
    assert sorted(shuffled) == sorted(ordered)


def test_odd_characters_come_in_texts_and_in_structured_answers(simulator: Simulator) -> None:
    simulator.fault(provider="anthropic", kind="odd", every=1, times=2)
    output = {"format": {"type": "json_schema", "schema": SCHEMA}}
    for params in ({}, {"output_config": output}):
        (line,) = raw_results(simulator, finished(simulator, 1, **params))
        text = orjson.loads(line)["result"]["message"]["content"][0]["text"]
        text = orjson.loads(text)["reason"] if params else text
        assert {"\u2028", "\u0085", "\U0001f600"} <= set(text)


def test_a_lone_surrogate_is_escaped_on_the_wire(simulator: Simulator) -> None:
    simulator.fault(provider="anthropic", kind="surrogate", rows=[0])
    (line,) = raw_results(simulator, finished(simulator, 1))
    assert rb"\ud83d" in line


def test_an_answer_can_miss_the_schema(simulator: Simulator) -> None:
    simulator.fault(provider="anthropic", kind="invalid", rows=[0])
    simulator.fault(provider="anthropic", kind="text", rows=[1], text="[1, 2")
    output = {"format": {"type": "json_schema", "schema": SCHEMA}}
    lines = raw_results(simulator, finished(simulator, 2, output_config=output))
    texts = {
        row["custom_id"]: row["result"]["message"]["content"][0]["text"] for row in map(orjson.loads, lines)
    }
    assert "label" not in orjson.loads(texts["r-0"])
    assert texts["r-1"] == "[1, 2"


def test_a_fault_that_cannot_strike_is_refused(simulator: Simulator) -> None:
    for bad in (
        {"kind": "drop"},
        {"kind": "errored"},
        {"kind": "cut", "endpoint": "results"},
        {"kind": "drop", "x": 1},
    ):
        with pytest.raises(ValueError, match="validation error"):
            simulator.fault(**bad)


def test_a_fault_for_a_provider_that_is_not_spoken_is_refused(simulator: Simulator) -> None:
    assert set(simulator.ledger()) == set(PROVIDERS)
    with pytest.raises(ValueError, match="there is no provider cohere"):
        simulator.fault(provider="cohere", kind="hold")
