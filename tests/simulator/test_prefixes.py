"""Prompts that begin as earlier ones did are billed as the vendors bill them, through their own clients."""

from typing import Any

import pytest

from airflow_batch_llm.simulator.handle import Simulator
from tests.simulator.clients import (
    CLAUDE,
    GPT,
    anthropic_client,
    gemini_client,
    message_params,
    openai_client,
)

SONNET = "claude-sonnet-4-6"


def claude(simulator: Simulator, system: str, prompt: str, ttl: str | None, model: str = SONNET) -> Any:
    mark = {"cache_control": {"type": "ephemeral", "ttl": ttl}} if ttl else {}
    block: Any = {"type": "text", "text": system, **mark}
    params = message_params(prompt, model=model, system=[block])
    return anthropic_client(simulator).messages.create(**params).usage


def counts(usage: Any) -> tuple[int, int, int, int]:
    written = usage.cache_creation
    return (
        usage.input_tokens,
        usage.cache_read_input_tokens,
        written.ephemeral_5m_input_tokens,
        written.ephemeral_1h_input_tokens,
    )


def test_anthropic_caches_what_is_marked_for_as_long_as_it_says(simulator: Simulator) -> None:
    long = "word " * 1000  # 1,250 tokens
    assert counts(claude(simulator, long, "a" * 40, ttl=None)) == (1260, 0, 0, 0)
    assert counts(claude(simulator, long, "b" * 40, ttl="1h")) == (10, 0, 0, 1250)
    simulator.clock(advance_seconds=3000)
    assert counts(claude(simulator, long, "c" * 40, ttl="5m")) == (10, 1250, 0, 0)
    simulator.clock(advance_seconds=301)
    assert counts(claude(simulator, long, "d" * 40, ttl="5m")) == (10, 0, 1250, 0)
    assert counts(claude(simulator, long, "e" * 40, ttl="1h", model=CLAUDE)) == (1260, 0, 0, 0)
    assert counts(claude(simulator, "word " * 800, "f" * 40, ttl="1h")) == (1010, 0, 0, 0)


@pytest.mark.parametrize(("share", "hits"), [(0.0, 0), (1.0, 19)])
def test_a_knob_says_how_many_rows_of_a_batch_find_what_is_there(
    simulator: Simulator, share: float, hits: int
) -> None:
    simulator.turn(batch_cache_hits=share)
    block = {"type": "text", "text": "word " * 1000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    requests: Any = [
        {"custom_id": f"r-{n}", "params": message_params(f"row {n}", model=SONNET, system=[block])}
        for n in range(20)
    ]
    batch = anthropic_client(simulator).messages.batches.create(requests=requests)
    simulator.finish(batch.id)
    tokens = simulator.ledger()["anthropic"]["tokens"]
    assert (tokens["cached"], tokens["cache_write"]) == (hits * 1250, (20 - hits) * 1250)


def test_openai_caches_equal_beginnings_unasked_and_in_steps(simulator: Simulator) -> None:
    def cached(system: str, prompt: str, **params: Any) -> int:
        messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        answer = openai_client(simulator).chat.completions.create(model=GPT, messages=messages, **params)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    long = "word " * 1000
    assert cached(long, "a" * 40) == 0
    assert cached(long, "b" * 40) == 1152  # of 1,250 tokens
    assert cached(long, "b" * 40, prompt_cache_key="k") == 0
    assert cached(long, "c" * 40, prompt_cache_key="k") == 1152
    assert cached("word " * 800, "a") == cached("word " * 800, "b") == 0


def test_newer_models_of_openai_charge_for_what_they_write(simulator: Simulator) -> None:
    def used(prompt: str, **params: Any) -> tuple[int, int]:
        system: Any = {"type": "text", "text": "word " * 1000, **params.pop("mark", {})}
        messages: Any = [{"role": "system", "content": [system]}, {"role": "user", "content": prompt}]
        create = openai_client(simulator).chat.completions.create
        answer = create(model="gpt-5.6-luna", messages=messages, **params)
        details: Any = answer.usage and answer.usage.prompt_tokens_details
        return details.cached_tokens, details.cache_write_tokens

    explicit: Any = {"prompt_cache_options": {"mode": "explicit"}}
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    assert used("a " * 800, **explicit) == (0, 0)
    assert used("a " * 800) == (0, 1536)
    assert used("b " * 800) == (1152, 384)  # all that no earlier prompt has, and nobody asks again
    assert used("c " * 800, **explicit, mark=mark) == (0, 1250)
    assert used("d " * 800, **explicit, mark=mark) == (1250, 0)


def test_vertex_caches_unasked_in_real_time(simulator: Simulator) -> None:
    client = gemini_client(simulator)

    def cached(prompt: str) -> int:
        answer = client.models.generate_content(model="gemini-2.5-flash", contents=prompt)
        assert answer.usage_metadata is not None
        return answer.usage_metadata.cached_content_token_count or 0

    long = "word " * 1700  # 2,125 tokens
    assert (cached(long + "a"), cached(long + "b"), cached(long[:8000] + "c")) == (0, 2048, 0)
