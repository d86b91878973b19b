"""Bodies that are split while they arrive."""

import tracemalloc
from pathlib import Path

import orjson
import pytest

from airflow_batch_llm.simulator.bodies import ArraySplitter, BodyError, lines, parse

ODD = {
    "custom_id": 'a"],{"',
    "params": {"nested": [{}, {"x": ["]", "}", "\\", '\\"']}], "t": "\u2028\U0001f600"},
}


def split(body: bytes, size: int) -> list[bytes]:
    splitter = ArraySplitter()
    found = [
        each.line for start in range(0, len(body), size) for each in splitter.feed(body[start : start + size])
    ]
    return found + [each.line for each in splitter.finish()]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_elements_are_the_same_however_the_body_is_cut(size: int) -> None:
    body = orjson.dumps({"first": {"requests": [1]}, "requests": [ODD, {}, ODD], "last": 1})
    assert [orjson.loads(line) for line in split(body, size)] == [ODD, {}, ODD]


def test_an_element_that_spans_lines_becomes_one_line() -> None:
    body = orjson.dumps({"requests": [ODD]}, option=orjson.OPT_INDENT_2)
    (line,) = split(body, 10)
    assert b"\n" not in line
    assert orjson.loads(line) == ODD


def test_an_empty_array_has_no_elements() -> None:
    assert split(b' {"requests" : [ ] }', 3) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"x"',
        b'{"requests": 1}',
        b'{"requests": [{}',
        b'{"requests": [{} {}]}',
        b'{"other": []}',
        b"\xff\xfe",
    ],
)
def test_what_is_not_such_a_body_is_refused(body: bytes) -> None:
    with pytest.raises(BodyError):
        split(body, 4)


def test_memory_does_not_grow_with_the_body() -> None:
    element = orjson.dumps({"custom_id": "a", "params": {"text": "x" * 1000}})
    tracemalloc.start()
    splitter = ArraySplitter()
    assert not list(splitter.feed(b'{"requests":['))
    count = 0
    for _ in range(20_000):
        count += len(list(splitter.feed(element + b",")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 1_000_000


def test_an_escaped_lone_surrogate_is_read_as_a_question_mark() -> None:
    assert parse(rb'{"a": "x\ud83d"}') == {"a": "x?"}


def test_lines_end_at_the_newline_byte_only(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes("a\u2028b\u0085\n\n  \nc\r\n".encode())
    assert list(lines(path)) == ["a\u2028b\u0085".encode(), b"c"]
