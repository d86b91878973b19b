"""Wire lines made of a template, and the identities that stand in users' tables."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.core.request import (
    CUSTOM_ID,
    PROMPT,
    LineTemplate,
    canonical,
    custom_id,
    digest,
    shard_token,
)

LINES = {
    "id first": {"custom_id": CUSTOM_ID, "body": {"n": 1, "input": PROMPT, "more": [True, None]}},
    "prompt first": {"input": PROMPT, "custom_id": CUSTOM_ID},
    "id twice": {"custom_id": CUSTOM_ID, "input": PROMPT, "labels": {"id": CUSTOM_ID}},
    "prompt only": {"input": PROMPT},
}
PROMPTS = st.text().map(lambda text: text.encode("utf-8", "replace").decode())


@pytest.mark.parametrize("name", LINES)
@given(prompt=PROMPTS, ordinal=st.integers(0, 10**8))
def test_a_line_is_what_encoding_the_whole_would_give(name: str, prompt: str, ordinal: int) -> None:
    template = LineTemplate.of(LINES[name])
    identity = custom_id("r0123456789a1-0007", ordinal)

    line = template.line(identity, orjson.dumps(prompt))

    filled = orjson.loads(orjson.dumps(LINES[name]))
    assert orjson.loads(line) == _filled(filled, identity, prompt)
    assert b"\n" not in line
    assert len(line) <= template.overhead + len(orjson.dumps(prompt))
    assert template.prompt(line, identity) == orjson.dumps(prompt)


def _filled(value: object, identity: str, prompt: str) -> object:
    if isinstance(value, dict):
        return {name: _filled(part, identity, prompt) for name, part in value.items()}
    if value == CUSTOM_ID:
        return identity
    return prompt if value == PROMPT else value


def test_a_text_that_looks_like_a_hole_is_a_text() -> None:
    template = LineTemplate.of({"custom_id": CUSTOM_ID, "input": PROMPT})
    prompt = orjson.dumps(PROMPT + CUSTOM_ID)

    assert orjson.loads(template.line("a-1", prompt)) == {"custom_id": "a-1", "input": PROMPT + CUSTOM_ID}


def test_a_custom_id_is_short_plain_and_in_order() -> None:
    token = shard_token("r0123456789f", 12)
    ids = [custom_id(token, ordinal) for ordinal in (0, 7, 10, 999_999)]

    assert ids == sorted(ids)
    assert ids[1] == "r0123456789f-0012-000007"
    assert len(ids[-1]) <= 63


@given(
    st.dictionaries(st.text("abc", max_size=3), st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none())
)
def test_equal_values_have_one_spelling(value: dict[str, object]) -> None:
    turned = dict(reversed(value.items()))

    assert canonical(value) == canonical(turned)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((), "cae66941d9efbd404e4d88758ea67670"),
        ((b"",), "c804ce198ec337e3dc762bdd1a09aece"),
        ((b"ab", b"c"), "d301c71d527a1a9ae0e1e1e5bee135f5"),
        ((b"a", b"bc"), "f657d58ed59382298356d21c95353a31"),
    ],
)
def test_digests_are_the_same_in_every_release(parts: tuple[bytes, ...], expected: str) -> None:
    assert digest(*parts) == expected


@pytest.mark.parametrize("name", LINES)
@given(prompt=PROMPTS, ordinal=st.integers(0, 10**7))
def test_the_pieces_of_a_shard_and_what_goes_between_them_make_the_line(
    name: str, prompt: str, ordinal: int
) -> None:
    template = LineTemplate.of(LINES[name])
    encoded = orjson.dumps(prompt)
    first, *pieces = template.pieces_under("r1-0001")

    line = first
    for hole, piece in zip(template.holes, pieces, strict=True):
        line += (encoded if hole == PROMPT else f"{ordinal:06d}".encode()) + piece

    assert line == template.line(custom_id("r1-0001", ordinal), encoded) + b"\n"
