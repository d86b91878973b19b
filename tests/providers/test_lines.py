from collections.abc import Callable
from itertools import chain

import pytest
from orjson import dumps

from airflow_batch_llm.providers.anthropic.lines import answer_cap as anthropic_cap
from airflow_batch_llm.providers.failures import brief
from airflow_batch_llm.providers.incoming import MOST_LINE_BYTES, parse_line, split_lines
from airflow_batch_llm.providers.openai.lines import answer_cap as openai_cap

ODD = dumps({"text": "one\u2028two\u0085three\x0bfour 😀"})


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_line_ends_at_the_byte_n_and_nowhere_else_however_the_stream_is_cut(size: int) -> None:
    whole = ODD + b"\n" + b'{"a":1}\n\n' + b'{"b":2}\r\n' + b'{"last":true}'
    chunks = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert list(split_lines(chunks)) == [ODD, b'{"a":1}', b'{"b":2}', b'{"last":true}']


def test_an_empty_stream_has_no_lines() -> None:
    assert list(split_lines([])) == []


def test_a_lone_surrogate_becomes_one_replacement_character_and_pairs_stay_whole() -> None:
    assert parse_line(rb'{"a\udfff": ["x\ud800y", "\ud83d\ude00"]}') == {"a\ufffd": ["x\ufffdy", "😀"]}


@pytest.mark.parametrize("line", [b"", b"{", b"7", b"[1]", b"\xff"])
def test_what_is_no_json_object_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_line(line)


def test_a_providers_message_is_kept_up_to_500_characters() -> None:
    assert brief("m" * 900) == "m" * 500
    assert brief(None) is None
    assert brief("") is None


def test_a_line_without_an_end_is_cut_off_and_the_next_is_whole() -> None:
    endless = (b"x" * (1 << 20) for _ in range(200))

    first, second = split_lines(chain(endless, [b"xx\nnext\n"]))

    assert MOST_LINE_BYTES <= len(first) < MOST_LINE_BYTES + (2 << 20)
    assert second == b"next"


@pytest.mark.parametrize(
    ("answer_cap", "model", "most"),
    [
        (openai_cap, "gpt-4-turbo", 4_096),
        (openai_cap, "gpt-4o-2024-05-13", 4_096),
        (openai_cap, "gpt-4o-mini", 16_384),
        (openai_cap, "gpt-5.1-chat-latest", 16_384),
        (openai_cap, "gpt-5.1", 128_000),
        (anthropic_cap, "claude-opus-4-1", 32_000),
        (anthropic_cap, "claude-opus-4-5", 64_000),
        (anthropic_cap, "claude-opus-4-6", 128_000),
    ],
)
def test_the_longest_answer_is_that_of_the_model_and_not_of_its_family(
    answer_cap: Callable[[str], int], model: str, most: int
) -> None:
    assert answer_cap(model) == most
