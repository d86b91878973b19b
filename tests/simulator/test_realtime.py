"""Requests that are answered at once, through the vendors' asynchronous clients with their own retries off."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import anthropic
import openai
import pytest
from google.genai.types import HttpOptions

from airflow_batch_llm.simulator.handle import Simulator
from tests.simulator.clients import (
    CLAUDE,
    GPT,
    anthropic_client,
    gemini_client,
    message_params,
    openai_batch,
    openai_client,
    openai_line,
)

GEMINI = "gemini-2.5-flash"
ADA = "text-embedding-3-small"
FLEX_HEADER = {"X-Vertex-AI-LLM-Shared-Request-Type": "flex"}


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
        return self.simulator.ledger()[provider]


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
    batch = client.messages.batches.create(
        requests=[{"custom_id": "a", "params": message_params("same")}]  # type: ignore[list-item]
    )
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
