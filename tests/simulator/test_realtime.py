"""Requests that are answered at once, through the vendors' asynchronous clients with their own retries off."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import anthropic
import openai
import orjson
import pytest
from google.genai import errors
from google.genai.types import HttpOptions

from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.simulator.responder import truth
from tests.simulator.clients import (
    CLAUDE,
    GPT,
    SCHEMA,
    anthropic_client,
    gemini_client,
    message_params,
    openai_batch,
    openai_client,
    openai_line,
)
from tests.vendors import FLEXIBLE, VENDORS

GEMINI = "gemini-2.5-flash"
ADA = "text-embedding-3-small"
FLEX_HEADER = {"X-Vertex-AI-LLM-Shared-Request-Type": "flex"}
SURE_SCHEMA: dict[str, Any] = {
    **SCHEMA,
    "properties": {**SCHEMA["properties"], "confidence": {"type": "number"}},
    "required": [*SCHEMA["required"], "confidence"],
}


class Desk:
    """The three vendors' clients."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.claude = anthropic.AsyncAnthropic(base_url=simulator.url, api_key="any", max_retries=0)
        self.gpt = openai.AsyncOpenAI(base_url=simulator.openai_url, api_key="any", max_retries=0)
        self.gemini = gemini_client(simulator, "global").aio

    async def message(self, text: str, **params: Any) -> Any:
        return await self.claude.messages.create(**message_params(text, **params))

    async def response(self, text: str, **params: Any) -> Any:
        return await self.gpt.responses.create(**{"model": GPT, "input": text, **params})

    async def chat(self, text: str, **params: Any) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        return await self.gpt.chat.completions.create(**{"model": GPT, "messages": messages, **params})

    async def embedding(self, text: str) -> Any:
        return await self.gpt.embeddings.create(model=ADA, input=text, dimensions=8)

    async def generated(self, text: str, headers: Mapping[str, str] | None = None) -> Any:
        config: Any = {"http_options": HttpOptions(headers=dict(headers or {}))}
        return await self.gemini.models.generate_content(model=GEMINI, contents=text, config=config)

    def bill(self, provider: str) -> dict[str, Any]:
        bill: dict[str, Any] = self.simulator.ledger()[provider]
        return bill


@pytest.fixture
async def desk(simulator: Simulator) -> AsyncIterator[Desk]:
    desk = Desk(simulator)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(desk.claude)
        await stack.enter_async_context(desk.gpt)
        stack.push_async_callback(desk.gemini.aclose)
        yield desk


# -- the ledger ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "ask"),
    [
        ("anthropic", CLAUDE, Desk.message),
        ("openai", GPT, Desk.response),
        ("openai", GPT, Desk.chat),
        ("openai", ADA, Desk.embedding),
        ("vertex", GEMINI, Desk.generated),
    ],
)
async def test_an_answer_in_real_time_is_charged_with_the_tokens_that_it_states(
    desk: Desk, provider: str, model: str, ask: Callable[[Desk, str], Awaitable[Any]]
) -> None:
    desk.simulator.turn(reasoning_tokens=0 if model == ADA else 3)
    used = getattr(answer := await ask(desk, "My invoice is wrong."), "usage", None) or answer.usage_metadata
    bill = desk.bill(provider)
    (charge,) = desk.simulator.charges(provider=provider, way="now")
    assert (charge["model"], charge["batch"], charge["input"]) == (model, None, 5)
    stated = used.model_dump()
    total = stated.get("total_tokens") or stated.get("total_token_count")
    total = total or stated["input_tokens"] + stated["output_tokens"]
    assert bill["tokens"]["input"] + bill["tokens"]["output"] == total
    assert bill["rows"] == {"executed": 1, "charged": 1, "succeeded": 1}
    assert bill["ways"]["now"]["by_model"] == bill["by_model"] == {model: {"rows": 1, **bill["tokens"]}}
    assert bill["ways"]["batch"]["rows"] == bill["ways"]["flex"]["rows"] == 0


async def test_what_a_batch_and_a_call_both_ask_was_bought_twice(desk: Desk) -> None:
    client = anthropic_client(desk.simulator)
    requests: Any = [{"custom_id": "a", "params": message_params("same")}]
    batch = client.messages.batches.create(requests=requests)
    desk.simulator.finish(batch.id)
    other = openai_batch(openai_client(desk.simulator), [openai_line("a", {"model": GPT, "input": "same"})])
    desk.simulator.finish(other.id)
    await desk.message("same")
    await desk.message("other")
    await desk.response("same", service_tier="flex")
    for provider, ways in (
        ("anthropic", {"batch": 1, "now": 2, "flex": 0}),
        ("openai", {"batch": 1, "now": 0, "flex": 1}),
    ):
        bill = desk.bill(provider)
        assert {way: part["rows"] for way, part in bill["ways"].items()} == ways
        assert bill["duplicates"] == {"contents": 1, "surplus_charges": 1}
        assert bill["rows"]["charged"] == sum(ways.values())
        doubled = list(desk.simulator.charges(provider=provider, duplicates="true"))
        assert len({charge["way"] for charge in doubled}) == len(doubled) == 2


async def test_a_call_whose_answer_is_lost_is_charged_and_one_that_is_refused_is_not(desk: Desk) -> None:
    desk.simulator.fault(provider="anthropic", endpoint="messages", kind="drop", effect="after")
    with pytest.raises(anthropic.APIConnectionError):
        await desk.message("lost")
    desk.simulator.fault(provider="anthropic", endpoint="messages", kind="status", status=529)
    with pytest.raises(anthropic.APIStatusError) as overloaded:
        await desk.message("busy")
    assert (overloaded.value.status_code, overloaded.value.type) == (529, "overloaded_error")
    assert "retry-after" not in overloaded.value.response.headers
    with pytest.raises(anthropic.NotFoundError):
        await desk.message("x", model="claude-no-such")
    bill = desk.bill("anthropic")
    assert bill["rows"]["charged"] == bill["ways"]["now"]["rows"] == 1
    assert bill["answers"]["messages"] == {"0": 1, "404": 1, "529": 1}


async def test_an_answer_that_breaks_off_is_charged(desk: Desk) -> None:
    desk.simulator.fault(provider="openai", endpoint="responses", kind="cut", bytes=40)
    with pytest.raises(openai.APIConnectionError):
        await desk.response("a")
    assert desk.bill("openai")["rows"]["charged"] == 1


async def test_charges_in_real_time_survive_a_crash_and_end_with_a_reset(desk: Desk) -> None:
    await desk.generated("one")
    desk.simulator.restart()
    assert desk.bill("vertex")["ways"]["now"]["rows"] == 1
    desk.simulator.reset()
    assert desk.bill("vertex")["rows"]["charged"] == 0


# -- the flex tier ---------------------------------------------------------------------------------------------------


async def test_the_flex_tier_is_asked_for_in_each_vendors_way_and_charged_as_such(desk: Desk) -> None:
    assert (await desk.response("a", service_tier="flex")).service_tier == "flex"
    assert (await desk.chat("a", service_tier="flex")).service_tier == "flex"
    assert (await desk.response("b")).service_tier == "default"
    assert (await desk.generated("a", FLEX_HEADER)).usage_metadata.traffic_type == "ON_DEMAND_FLEX"
    assert (await desk.generated("b")).usage_metadata.traffic_type == "ON_DEMAND"
    for provider, flex in (("openai", 2), ("vertex", 1)):
        ways = desk.bill(provider)["ways"]
        assert (ways["flex"]["rows"], ways["now"]["rows"]) == (flex, 1)
    with pytest.raises(anthropic.BadRequestError, match="service_tier"):
        await desk.message("a", service_tier="flex")
    assert (await desk.message("a", service_tier="standard_only")).usage.service_tier == "standard"
    with pytest.raises(openai.BadRequestError, match="service_tier"):
        await desk.response("a", service_tier="no-such-tier")


async def test_vertex_has_the_flex_tier_at_its_global_endpoint_only(simulator: Simulator) -> None:
    client = gemini_client(simulator, "us-central1").aio
    config: Any = {"http_options": HttpOptions(headers=FLEX_HEADER)}
    answer = await client.models.generate_content(model=GEMINI, contents="a", config=config)
    await client.aclose()
    assert answer.usage_metadata is not None
    assert answer.usage_metadata.traffic_type == "ON_DEMAND"
    assert simulator.ledger()["vertex"]["ways"]["now"]["rows"] == 1


@pytest.mark.parametrize("provider", FLEXIBLE)
async def test_the_flex_tier_can_be_full_or_leave_a_request_to_the_usual_tier(
    desk: Desk, provider: str
) -> None:
    async def tier() -> str:
        if provider == "openai":
            return str((await desk.response("a", service_tier="flex")).service_tier)
        return str((await desk.generated("a", FLEX_HEADER)).usage_metadata.traffic_type.value)

    desk.simulator.fault(provider=provider, kind="no_capacity")
    desk.simulator.fault(provider=provider, kind="downgraded", nth=2)
    await (desk.response("b") if provider == "openai" else desk.generated("b"))
    if provider == "openai":
        with pytest.raises(openai.RateLimitError) as full:
            await tier()
        assert full.value.code == "resource_unavailable"
        assert "retry-after" not in full.value.response.headers
    else:
        with pytest.raises(errors.ClientError) as exhausted:
            await tier()
        assert (exhausted.value.code, exhausted.value.status) == (429, "RESOURCE_EXHAUSTED")
    assert (await tier(), await tier()) == VENDORS[provider].flex
    ways = desk.bill(provider)["ways"]
    assert (ways["now"]["rows"], ways["flex"]["rows"]) == (2, 1)


# -- limits ----------------------------------------------------------------------------------------------------------


async def test_beyond_its_limit_a_model_of_anthropic_refuses_and_says_when_to_come_again(desk: Desk) -> None:
    desk.simulator.turn(requests_per_minute=2, tokens_per_minute=1000, output_tokens_per_minute=500)
    first = await desk.claude.messages.with_raw_response.create(**message_params("x" * 400))
    used = (await first.parse()).usage
    headers = first.headers
    assert used.input_tokens == 100
    assert headers["anthropic-ratelimit-requests-limit"] == "2"
    assert headers["anthropic-ratelimit-requests-remaining"] == "1"
    assert 900 <= int(headers["anthropic-ratelimit-input-tokens-remaining"]) < 1000
    assert int(headers["anthropic-ratelimit-output-tokens-remaining"]) >= 500 - used.output_tokens
    assert headers["anthropic-ratelimit-tokens-limit"] == "1500"
    reset = datetime.fromisoformat(headers["anthropic-ratelimit-requests-reset"])
    assert 0 < (reset - datetime.now(UTC)).total_seconds() < 31
    await desk.message("second")
    with pytest.raises(anthropic.RateLimitError) as raised:
        await desk.message("third")
    assert raised.value.type == "rate_limit_error"
    assert 0 < int(raised.value.response.headers["retry-after"]) <= 30
    assert raised.value.response.headers["anthropic-ratelimit-requests-remaining"] == "0"
    await desk.message("another model", model="claude-sonnet-5")
    assert desk.bill("anthropic")["rows"]["charged"] == 3
    desk.simulator.clock(advance_seconds=60)
    await desk.message("third")


@pytest.mark.parametrize(("kind", "limits"), [("requests", (1, 1000)), ("tokens", (9, 101))])
async def test_beyond_its_limit_a_model_of_openai_refuses_by_requests_or_tokens(
    desk: Desk, kind: str, limits: tuple[int, int]
) -> None:
    requests, tokens = limits
    desk.simulator.turn(requests_per_minute=requests, tokens_per_minute=tokens)
    first = await desk.gpt.responses.with_raw_response.create(model=GPT, input="a", max_output_tokens=100)
    assert first.headers["x-ratelimit-limit-requests"] == str(requests)
    assert int(first.headers["x-ratelimit-remaining-tokens"]) in range(tokens - 100, tokens - 50)
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    with pytest.raises(openai.RateLimitError) as raised:
        await desk.response("b", max_output_tokens=100)
    assert (raised.value.code, raised.value.type) == ("rate_limit_exceeded", kind)
    wait = int(raised.value.response.headers["retry-after"])
    assert 0 <= wait * 1000 - int(raised.value.response.headers["retry-after-ms"]) < 1000
    await desk.embedding("another model")
    desk.simulator.clock(advance_seconds=wait)
    await desk.response("b", max_output_tokens=100)


async def test_output_tokens_are_taken_when_they_are_made_and_may_leave_a_debt(desk: Desk) -> None:
    desk.simulator.turn(output_tokens_per_minute=10, reasoning_tokens=20)
    await desk.message("a")
    with pytest.raises(anthropic.RateLimitError, match="output tokens"):
        await desk.message("b")
    desk.simulator.clock(advance_seconds=60)
    with pytest.raises(anthropic.RateLimitError, match="output tokens"):
        await desk.message("b")
    desk.simulator.clock(advance_seconds=120)
    await desk.message("b")


async def test_a_refusal_need_not_say_when_to_come_again(desk: Desk) -> None:
    desk.simulator.turn(requests_per_minute=1)
    await desk.generated("a")
    with pytest.raises(errors.ClientError) as exhausted:
        await desk.generated("b")
    assert (exhausted.value.code, exhausted.value.status) == (429, "RESOURCE_EXHAUSTED")
    headers = exhausted.value.response.headers
    assert not [name for name in headers if "ratelimit" in name or "retry" in name]
    desk.simulator.turn(retry_after=False)
    await desk.message("a")
    with pytest.raises(anthropic.RateLimitError) as raised:
        await desk.message("b")
    assert "retry-after" not in raised.value.response.headers


async def test_limits_of_spending_end_a_call_for_good(desk: Desk) -> None:
    spend = {"kind": "status", "status": 429}
    desk.simulator.fault(
        provider="anthropic", endpoint="messages", code="enforced_spend_limit_reached", **spend
    )
    desk.simulator.fault(provider="openai", endpoint="chat", code="insufficient_quota", **spend)
    with pytest.raises(anthropic.RateLimitError) as one:
        await desk.message("a")
    with pytest.raises(openai.RateLimitError) as other:
        await desk.chat("a")
    assert (one.value.error_code, other.value.code) == ("enforced_spend_limit_reached", "insufficient_quota")
    assert not {"retry-after"} & {*one.value.response.headers, *other.value.response.headers}


# -- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knob", ["answer_latency", "answer_latency_per_token"])
async def test_hundreds_are_answered_side_by_side_and_who_hangs_up_has_paid(desk: Desk, knob: str) -> None:
    desk.simulator.turn(**{knob: 300})
    calls = [asyncio.create_task(desk.message(f"ticket {n}")) for n in range(300)]
    while (await asyncio.to_thread(desk.bill, "anthropic"))["rows"]["charged"] < len(calls):
        pass
    assert not any(call.done() for call in calls)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    desk.simulator.turn(**{knob: 0})
    await desk.message("ticket 0")
    assert desk.bill("anthropic")["duplicates"] == {"contents": 1, "surplus_charges": 1}


# -- models that err -------------------------------------------------------------------------------------------------


def labelled(simulator: Simulator, model: str, count: int) -> dict[str, dict[str, Any]]:
    """The answers of a model to this many tickets, by a batch."""
    client = anthropic_client(simulator)
    output = {"format": {"type": "json_schema", "schema": SURE_SCHEMA}}
    requests: Any = [
        {"custom_id": f"r-{n}", "params": message_params(f"ticket {n}", model=model, output_config=output)}
        for n in range(count)
    ]
    batch = client.messages.batches.create(requests=requests)
    simulator.finish(batch.id)
    results: Any = client.messages.batches.results(batch.id)
    return {
        row.custom_id.replace("r-", "ticket "): orjson.loads(row.result.message.content[0].text)
        for row in results
    }


async def test_models_err_at_their_rates_and_are_less_sure_where_they_do(desk: Desk) -> None:
    small, large = CLAUDE, "claude-sonnet-5"
    desk.simulator.turn(wrong_share={small: 0.12, large: 0.02})
    for model, rate in ((small, 0.12), (large, 0.02)):
        answers = labelled(desk.simulator, model, 2000)
        right = {text: truth(text, SURE_SCHEMA)["label"] for text in answers}
        assert set(right.values()) == set(SCHEMA["properties"]["label"]["enum"])
        wrong = {text for text, answer in answers.items() if answer["label"] != right[text]}
        assert len(wrong) / len(answers) == pytest.approx(rate, rel=0.2)
        unsure = {text for text, answer in answers.items() if answer["confidence"] < 0.7}
        assert len(wrong & unsure) / len(unsure) > 3 * len(wrong - unsure) / len(answers.keys() - unsure)
    ways = {"json_schema": {"name": "t", "schema": SURE_SCHEMA, "strict": True}, "type": "json_schema"}
    output = {"format": {"type": "json_schema", "schema": SURE_SCHEMA}}
    for text in ("ticket 1", "ticket 2", "ticket 3"):
        said = await desk.message(text, model=large, output_config=output)
        assert orjson.loads(said.content[0].text) == answers[text]
        other = orjson.loads((await desk.chat(text, response_format=ways)).choices[0].message.content)
        assert other["label"] == right[text]  # a model without a share is always right


async def test_the_truth_can_hang_on_a_part_of_the_prompt(desk: Desk) -> None:
    desk.simulator.turn(wrong_share={CLAUDE: 0}, truth_find=r"ticket \d+")
    output = {"format": {"type": "json_schema", "schema": SCHEMA}}
    texts = ("Label ticket 7.", "Be brief. ticket 7", "Label ticket 8.")
    first, same, other = [(await desk.message(text, output_config=output)).content[0].text for text in texts]
    assert orjson.loads(first) == truth("ticket 7", SCHEMA)
    assert first == same != other
    with pytest.raises(ValueError, match="regular expression"):
        desk.simulator.turn(truth_find="(")
