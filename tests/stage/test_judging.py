"""The boundary at which result lines are judged: whatever a line holds costs its own row at most."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.stage.land.gathering import RowFailure
from tests.fuzz import PROVIDERS, REQUESTS, check, judged, landed, landing_place, subject
from tests.stage.world import Bench
from tests.vendors import VENDORS

_DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with landing_place() as place:
        yield place


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(name=st.sampled_from(PROVIDERS), seed=st.integers(0, 2**64))
def test_spoiled_lines_of_a_shard_leave_one_outcome_for_each_request(
    place: Path, name: str, seed: int
) -> None:
    check(name, seed, place)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    "count",
    [b"1e999", b"-1", b"1.5", b"true", b'"ten"', b"NaN", b"[]", b"12345678901234567890123", b"9223372036854775807"],
)  # fmt: skip
def test_a_token_count_that_is_none_is_an_invalid_row_whose_cost_is_unknown(
    name: str, count: bytes, place: Path
) -> None:
    failure = _spoiled(name, *_replaced(name, rb'"%s": ?\d+' % VENDORS[name].output_tokens, count), place)

    assert failure.code == "unusable_usage"
    assert "cost is unknown" in str(failure.message)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("value", [b"7", b"{}", b"[]", _DEEP], ids=["number", "object", "list", "deep"])
def test_a_value_of_the_wrong_type_in_a_good_answer_is_an_invalid_row(
    name: str, value: bytes, place: Path
) -> None:
    field = rb'"%s": ?"[^"]*"' % VENDORS[name].answering_model

    failure = _spoiled(name, *_replaced(name, field, value), place)

    assert failure.code == "unreadable_line"


def test_the_cost_of_an_answer_whose_tokens_are_told_is_counted_although_the_row_is_invalid() -> None:
    lines, request = _replaced("openai", rb'"model": ?"[^"]*"', b"7")

    bill = judged("openai", lines).judged.bills[request]

    assert (bill.cost or 0.0) > 0
    assert bill.usage.output_tokens > 0


@pytest.mark.parametrize("line", [b"[]", b"7", b'"b1f0-0001-000000', b"<html>", b"[" * 100_000])
def test_a_line_that_names_no_request_is_counted_and_costs_no_row(line: bytes) -> None:
    lines = subject("openai").lines

    gathered = judged("openai", [line, *lines])

    assert gathered.strange == {"unreadable_lines": 1}
    assert gathered.judged.outcomes == judged("openai", lines).judged.outcomes


@pytest.mark.parametrize(
    "custom_id", ["7", "null", '"b1f0-0001-' + "9" * 5000 + '"', '"b1f0-0001-\u0663"', "[[]]"]
)
def test_a_custom_id_that_is_none_of_ours_is_a_foreign_line(custom_id: str) -> None:
    line = subject("openai").lines[0].replace(b'"b1f0-0001-000000"', custom_id.encode())

    assert judged("openai", [line]).strange == {"foreign_lines": 1}


def test_a_good_line_wins_over_an_unreadable_one_of_the_same_request() -> None:
    good = subject("anthropic").lines[0]

    for lines in ([good[:-9], good], [good, good[:-9]]):
        gathered = judged("anthropic", lines)
        assert gathered.judged.outcomes[0] is Outcome.SUCCEEDED
        assert gathered.strange == {"unreadable_lines": 1, "duplicate_lines": 1}


@pytest.mark.parametrize(
    ("find", "text", "code"),
    [
        ('"output_tokens": ?\\d+', '"output_tokens": 1e999', "unusable_usage"),
        ('"model": ?"[^"]*"', '"model": 7', "unreadable_line"),
        ('"content": ?', '"content": ' + "[" * 100_000, "unreadable_line"),
        ('"stop_reason": ?"[^"]*"', '"stop_reason": "\\u0000\\ud800"', "\ufffd\ufffd"),
    ],
    ids=["usage", "model", "deep", "texts"],
)
def test_a_run_with_one_bad_line_ends_and_tells_the_row(
    anthropic: Bench, find: str, text: str, code: str
) -> None:
    anthropic.world.make_tickets(20)
    anthropic.fault(kind="spoiled", rows=[3], find=find, text=text)

    anthropic.complete(min_round_time=1e9)

    assert len(anthropic.world.answers()) == 19
    told = anthropic.world.ask("SELECT id, _llm_outcome, _llm_error_code FROM labels__failures")
    assert told == [(3, "invalid", code)]


def _replaced(name: str, pattern: bytes, value: bytes) -> tuple[list[bytes], int]:
    """A shard in whose first line the value of the field that matches is another; and that line's request."""
    lines = list(subject(name).lines)
    field = re.search(pattern, lines[0])
    assert field is not None
    key = field[0].partition(b":")[0]
    lines[0] = lines[0].replace(field[0], key + b":" + value)
    return lines, 0


def _spoiled(name: str, lines: list[bytes], request: int, place: Path) -> RowFailure:
    """Return why this request has no answer, after it alone has become invalid and the shard was landed."""
    gathered = judged(name, lines)
    expected = list(judged(name, subject(name).lines).judged.outcomes)
    expected[request] = Outcome.INVALID
    assert gathered.judged.outcomes == expected
    assert landed(gathered, place).total() == REQUESTS
    return gathered.judged.failure(request)
