"""Packed prompts, the answers in them, and the division of a bill."""

import json
from decimal import Decimal
from math import fsum
from random import Random
from typing import Any

import jsonschema_rs
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_batch_llm.core.answer import AnswerParser
from airflow_batch_llm.core.answer_schema import check
from airflow_batch_llm.core.model import Call, Outcome, Usage, Way
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.packing import (
    Layout,
    divide_dollars,
    divide_usage,
    item_answers,
    longest_packed,
    pack,
    pack_sizes,
    packed_call,
    unpack,
)
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.openai.lines import answered_line
from airflow_batch_llm.stage.land.gathering import LineJudge, ResultReader


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_ten_thousand_bills_are_divided_to_the_last_token_and_the_last_unit(seed: int) -> None:
    draw = Random(seed)
    for _ in range(100):
        usage = Usage(*(draw.randrange(10 ** draw.randint(1, 9)) for _ in Usage._fields))
        dollars, parts = Decimal(draw.randrange(10 ** draw.randint(1, 16))).scaleb(-14), draw.randint(1, 100)
        usages, shares = divide_usage(usage, parts), divide_dollars(dollars, parts)
        assert (len(usages), Usage.total(usages)) == (parts, usage)
        assert (len(shares), sum(shares)) == (parts, dollars)
        assert max(shares) - min(shares) < Decimal("2e-12")
        assert all(max(counts) - min(counts) <= 1 for counts in zip(*usages, strict=True))
        assert fsum(map(float, shares)) == pytest.approx(float(dollars), abs=1e-12)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.lists(TEXTS, min_size=1, max_size=12))
def test_a_packed_prompt_gives_back_the_prompts_and_fits_where_it_should(texts: list[str]) -> None:
    prompts = [orjson.dumps(text) for text in texts]
    assert unpack(pack(prompts)) == prompts
    for prompt in prompts:
        packed = len(pack([prompt]))
        assert longest_packed(packed) <= len(prompt) <= longest_packed(2 * packed + 4096)


@given(st.lists(st.integers(2, 40_000), max_size=40), st.integers(2, 12))
def test_requests_hold_few_enough_rows_and_bytes_and_every_row_once(lengths: list[int], rows: int) -> None:
    sizes = pack_sizes(lengths, rows)
    assert sum(sizes) == len(lengths)
    layout = Layout.packed(bytes(sizes))
    assert [layout.request_of(item) for item in range(layout.items)] == [
        request for request, size in enumerate(sizes) for _ in range(size)
    ]
    for request, size in enumerate(sizes):
        items = layout.items_of(request)
        assert 1 <= size <= rows
        assert size == 1 or sum(lengths[item] for item in items) <= 64 << 10


ENTRY = st.fixed_dictionaries(
    {"item": st.one_of(st.integers(-1, 8), st.sampled_from(["1", None, 1.5, True]))},
    optional={
        "answer": st.one_of(
            st.sampled_from(["billing", "bug"]).map(lambda label: {"label": label}), st.none(), TEXTS
        )
    },
)
ANSWERS = st.one_of(
    st.lists(st.one_of(ENTRY, st.integers(), TEXTS), max_size=9).map(lambda entries: {"answers": entries}),
    st.just({"answers": {}}),
    st.just([]),
    ENTRY,
)


def judge() -> LineJudge:
    output_type = OutputType.of(["billing", "bug"])
    return LineJudge(
        provider=connect("openai", Access(api_key="none")),
        parser=AnswerParser.of(output_type),
        prices=PriceList.of("openai", "gpt-4o-mini", at=1.7e9),
        way=Way.BATCH,
    )


JUDGE = judge()


@given(
    answer=ANSWERS,
    cut=st.integers(0, 400),
    stop=st.sampled_from(["stop", "length", "content_filter"]),
    size=st.integers(1, 7),
)
@settings(max_examples=300, deadline=None)
def test_every_item_gets_exactly_one_outcome_whatever_the_model_answers(
    answer: Any, cut: int, stop: str, size: int
) -> None:
    text = json.dumps(answer)[: cut or None]
    body = {
        "choices": [{"message": {"content": text}, "finish_reason": stop}],
        "usage": {"prompt_tokens": 1001, "completion_tokens": 77},
    }
    layout = Layout.packed(bytes([2, size, 3]))

    read = ResultReader(lines=JUDGE).gather(
        [("batch", [answered_line("r1-000001", body)])], token="r1", layout=layout
    )

    judged, items = read.judged, layout.items_of(1)
    verdicts = JUDGE.judge(answered_line("r1-000001", body), "r1", layout)
    assert [verdict.request for verdict in verdicts] == list(items)
    for item in range(layout.items):
        is_good = judged.outcomes[item] is Outcome.SUCCEEDED
        assert is_good == (judged.values[item] is not None) == (item in items and item not in judged.failures)
        assert (judged.batch_ids[item] is not None) == (item in items)
    assert Usage.total(list(judged.usages())) == Usage(input_tokens=1001, output_tokens=77)
    whole = JUDGE.prices.cost(Usage(input_tokens=1001, output_tokens=77))
    assert round(judged.cost, 12) == float(whole or 0)
    if stop == "content_filter":
        assert {judged.outcomes[item] for item in items} == {Outcome.REFUSED}


def test_answers_are_found_by_number_keep_their_digits_and_survive_a_cut() -> None:
    text = '```json\n{"note": [1], "answers": [ {"answer": 12.10, "item": 2}, 7, {"item":1,"answer":"a\\"b"},{"item":3,"ans'
    assert item_answers(text) == ({2: ["12.10"], 1: ['"a\\"b"']}, True)
    assert item_answers("no list") == ({}, False)
    assert item_answers('{"answers": "none"}') == ({}, False)


def test_the_schema_of_a_packed_request_keeps_references_and_its_tokens_stop_at_the_cap() -> None:
    tree = {
        "type": "object",
        "properties": {"name": {"$ref": "#/$defs/name"}, "parts": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["name"],
        "$defs": {"name": {"type": "string"}},
    }
    call = packed_call(Call(model="any", schema=tree, max_tokens=1000), 10, cap=4096)
    assert call.schema is not None
    check(call.schema)
    assert call.max_tokens == 4096
    assert packed_call(Call(model="any", max_tokens=9000), 10, cap=4096).max_tokens == 9000
    assert packed_call(Call(model="any", max_tokens=None), 10, cap=4096).max_tokens is None
    judged = jsonschema_rs.validator_for(dict(call.schema))
    good = {"item": 1, "answer": {"name": "a", "parts": [{"name": "b"}]}}
    assert judged.is_valid({"answers": [good]})
    assert not judged.is_valid({"answers": [{"item": 1, "answer": {"name": "a", "parts": [{"name": 1}]}}]})
