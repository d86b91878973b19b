"""Requests share a prefix, the vendor caches it, and the report says what that has won or lost."""

from typing import Any

import httpx
import openai as sdk
import orjson
import pytest

from airflow_batch_llm.core.model import Way
from airflow_batch_llm.core.settings import Only
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access, Provider
from airflow_batch_llm.stage.land.finishing import Finished
from tests.stage.world import Bench

#: Tokens of the simulator have four characters.
INSTRUCTIONS = "Rule: say what the ticket is about, and nothing else. " * 160
MODELS = {"anthropic": "claude-sonnet-4-6", "openai": "gpt-5-mini", "vertex": "gemini-2.5-flash"}


def complete(bench: Bench, name: str, first: int, rows: int = 60, **changes: Any) -> Finished:
    """Ask about new tickets."""
    bench.world.ask(
        "CREATE OR REPLACE TABLE tickets AS SELECT i AS id, 'subject ' || i AS subject, 'body of ' || i AS body "
        f"FROM range({first}, {first + rows}) t(i)"
    )
    model = f"{bench.world.provider_name}:{MODELS[bench.world.provider_name]}"
    return bench.complete(name, **{"system_prompt": INSTRUCTIONS, "model_id": model, **changes})


def test_auto_marks_the_prefix_and_stops_once_that_has_lost_money(anthropic: Bench) -> None:
    world, length = anthropic.world, len(INSTRUCTIONS) // 4
    world.simulator.turn(batch_cache_hits=0.8)
    first = complete(anthropic, "first", 0).report
    caching = first.caching["default"]
    hits = round(caching["hit_rate"] * 60)
    assert 35 < hits < 60
    assert (caching["cached_tokens"], caching["written_tokens"]) == (hits * length, (60 - hits) * length)
    assert caching["asked"]
    assert caching["won_usd"] > 0
    assert any("63% of hits expected" in said for said in anthropic.said)
    assert any("Caching by the route default won" in said for said in anthropic.said)

    world.simulator.turn(batch_cache_hits=0.3)
    second = complete(anthropic, "second", 100).report
    assert second.caching["default"]["won_usd"] < 0
    assert any("Caching by the route default lost" in said for said in anthropic.said)

    third = complete(anthropic, "third", 200).report
    assert third.caching == {}
    assert any("the vendor is not asked to cache, since it lost" in said for said in anthropic.said)
    fourth = complete(anthropic, "fourth", 300, cache_system_prompt="on").report
    assert fourth.caching["default"]["asked"]
    total = sum(one.spent.cost for one in (first, second, third, fourth))
    assert total == pytest.approx(world.billed(Way.BATCH), abs=1e-9)
    assert len({one for (one,) in world.ask("SELECT DISTINCT _llm_spec_hash FROM labels")}) == 1


def test_the_dollars_won_are_those_of_the_same_run_without_a_cache(anthropic: Bench) -> None:
    marked = complete(anthropic, "marked", 0, cache_system_prompt="on").report
    plain = complete(anthropic, "plain", 0, cache_system_prompt="off", target="other").report
    assert plain.caching == {}
    won = marked.caching["default"]["won_usd"]
    assert won == pytest.approx(plain.spent.cost - marked.spent.cost, abs=1e-6)


def test_a_pilot_asks_to_cache_as_the_route_does_whose_rows_it_repeats(anthropic: Bench) -> None:
    complete(anthropic, "pilot", 0, rows_per_request=10, cache_system_prompt="on")

    lines = [
        orjson.loads(line)["params"]
        for path in (anthropic.world.folder / "workspace" / "pilot").rglob("*.requests.jsonl")
        for line in path.read_bytes().splitlines()
    ]
    assert len(lines) == 60 + 6, "some rows are asked packed, too"
    assert all("cache_control" in str(params["system"]) for params in lines)


def test_in_real_time_almost_every_request_finds_the_prefix(anthropic: Bench) -> None:
    report = complete(anthropic, "now", 0, 30, way="now").report
    assert report.caching["default"]["hit_rate"] > 0.8
    assert report.spent.cost == pytest.approx(anthropic.world.billed(Way.NOW), abs=1e-9)


@pytest.mark.parametrize("sizes", [[60], [6, 15]])
def test_the_next_estimate_counts_on_the_same_hits(anthropic: Bench, sizes: list[int]) -> None:
    anthropic.world.simulator.turn(batch_cache_hits=1.0)
    for size in sizes:  # small runs tell it together
        complete(anthropic, f"of {size}", size * 100, size)
        anthropic.world.sleep(86_400.0)
    second = complete(anthropic, "second", 100).report
    assert abs(second.estimate_off["usd"]) < 0.1, second.estimate_off
    assert any("of the requests are taken to read from the vendor's cache" in said for said in anthropic.said)


def test_a_cache_that_cannot_be_turned_off_is_in_the_next_estimate(openai: Bench) -> None:
    openai.world.simulator.turn(cached_tokens=1280)
    complete(openai, "first", 0, cache_system_prompt="off")
    second = complete(openai, "second", 100, cache_system_prompt="off").report
    assert second.usage.cached_tokens > 0
    assert abs(second.estimate_off["usd"]) < 0.1, second.estimate_off


@pytest.mark.parametrize("rows_per_request", [1, 10])
def test_the_report_is_the_ledger_with_caching_on(bench: Bench, rows_per_request: int) -> None:
    bench.world.simulator.turn(batch_cache_hits=0.7)
    changes = {"cache_system_prompt": "on", "min_agreement": None, "rows_per_request": rows_per_request}
    done = complete(bench, "night", 0, **changes)

    tokens, usage = bench.world.ledger()["tokens"], done.report.usage
    assert tokens["cached"] > 0
    assert (usage.cached_tokens, usage.cache_write_tokens) == (tokens["cached"], tokens["cache_write"])
    assert done.report.spent.cost == pytest.approx(bench.world.billed(Way.BATCH), abs=1e-9)
    assert done.report.caching["default"]["hit_rate"] > 0


def test_examples_come_before_the_row_and_are_part_of_the_question(bench: Bench) -> None:
    changes = {"rows_per_request": 4, "min_agreement": None}
    examples = [("I was charged twice.", "billing"), ({"subject": "Crash", "body": "It fails."}, "bug")]
    complete(bench, "first", 0, 8, examples=examples, **changes)
    files = list((bench.world.folder / "workspace").rglob("*.requests.jsonl"))
    lines = [line for path in files for line in path.read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        asked = line.replace("\\", "")
        assert asked.count('{"input":"Subject: CrashnIt fails.","answer":{"label":"bug"}}') == 1
        assert asked.count('{"input":"I was charged twice.","answer":{"label":"billing"}}') == 1
    assert len(bench.world.answers()) == 8

    again = complete(bench, "second", 0, 8, examples=examples[:1], only=Only.OUTDATED, **changes)
    assert again.report.why == {"outdated": 8}


class ToSimulator(httpx.HTTPTransport):
    """Carries what is meant for the vendor to the simulator."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = httpx.URL(url)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(scheme=self._url.scheme, host=self._url.host, port=self._url.port)
        request.headers["host"] = self._url.netloc.decode()
        return super().handle_request(request)


def vendor(bench: Bench) -> Provider:
    """OpenAI at its own address."""

    def client() -> sdk.OpenAI:
        http = httpx.Client(transport=ToSimulator(bench.world.url))
        return sdk.OpenAI(api_key="any", http_client=http, max_retries=0)

    return connect("openai", Access(client=client))


def test_a_model_that_charges_for_writing_writes_only_what_is_shared(openai: Bench) -> None:
    world, length = openai.world, len(INSTRUCTIONS) // 4
    world.simulator.turn(batch_cache_hits=1.0)
    world.ask(
        "CREATE TABLE tickets AS SELECT i AS id, i || repeat(' word', 2000) AS body FROM range(40) t(i)"
    )
    asked = {
        "prompt": "{{ body }}",
        "model_id": "openai:gpt-5.6-luna",
        "carry": (),
        "system_prompt": INSTRUCTIONS,
    }
    costs = {}
    for how, hits, writes in (("off", 0, 0), ("auto", 39, 1), ("on", 40, 0)):
        given = {
            "cache_system_prompt": how,
            "target": f"answers_{how}",
            "parts": {"provider": vendor(openai)},
        }
        done = openai.complete(openai.run(how, **asked, **given)).report
        used = (done.usage.cached_tokens, done.usage.cache_write_tokens)
        assert used == (hits * length, writes * length)
        costs[how] = done.spent.cost
    assert costs["on"] < costs["auto"] < costs["off"]
    assert sum(costs.values()) == pytest.approx(world.billed(Way.BATCH), abs=1e-9)
