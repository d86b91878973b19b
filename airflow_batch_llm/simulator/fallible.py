"""Make answers of models that are wrong at a known rate, and say so with a confidence that means something.

The right answer depends on the prompt alone, so that models, vendors and ways to ask can be compared. A wrong answer
is wrong in every property, so that the rate holds for each of them.
"""

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson

from airflow_batch_llm.core.schema_rules import rules_in_words
from airflow_batch_llm.simulator.answers import Draw, conforming, phrase
from airflow_batch_llm.simulator.knobs import Knobs
from airflow_batch_llm.simulator.request import AskedRequest, seed_of

_CONFIDENCE = "confidence"
_TRIES = 50  # for a value that differs from the truth; a constant has none


def truth(prompt: str, schema: Mapping[str, Any] | None, find: str | None = None) -> Any:
    """The right answer to a prompt. `find` is the knob `truth_find`; the value of `confidence` means nothing here."""
    subject = _subject(prompt, find)
    if schema is None:
        return phrase(Draw(_seed(subject)), 3)
    parts = _parts(schema)
    if parts is None:
        return conforming(schema, _seed(subject))
    return {name: conforming(part, _seed(subject, name))[name] for name, part in parts.items()}


def fallible(request: AskedRequest, knobs: Knobs) -> str:
    """The text of a model's answer, which is wrong in the model's share of the rows."""
    subject = _subject(request.prompt, knobs.truth_find)
    draw = Draw(_seed(subject, "wrong", request.model))
    errs = draw.share() < knobs.wrong_share.get(request.model, 0.0)
    right = truth(request.prompt, request.schema, knobs.truth_find)
    answer = _wrong(right, request, subject) if errs else right
    if request.schema is None:
        return str(answer)
    parts = _parts(request.schema)
    if parts and isinstance(right.get(_CONFIDENCE), int | float):
        first, second = draw.share(), draw.share()
        sure = min(first, second) if errs else max(first, second)
        answer[_CONFIDENCE] = _confidence(request.schema, sure, whole=isinstance(right[_CONFIDENCE], int))
    return orjson.dumps(answer).decode()


def _wrong(right: Any, request: AskedRequest, subject: str) -> Any:
    """An answer that differs from the right one in every property."""
    wrong = dict(right) if isinstance(right, dict) else right
    for attempt in range(_TRIES):
        other = truth(f"{request.model} {attempt} {subject}", request.schema)
        if not isinstance(right, dict):
            if other != right:
                return other
            continue
        wrong |= {name: other[name] for name in right if wrong[name] == right[name] and name in other}
    return wrong


def _confidence(schema: Mapping[str, Any], sure: float, *, whole: bool) -> float:
    """A value in the upper half of what the schema admits: models are seldom modest."""
    part = schema["properties"][_CONFIDENCE]
    rules = {**rules_in_words(part.get("description")), **part}
    low, high = float(rules.get("minimum", 0)), float(rules.get("maximum", 100 if whole else 1))
    value = low + (high - low) * (1 + sure) / 2
    return round(value) if whole else round(value, 4)


def _subject(prompt: str, find: str | None) -> str:
    """The part of the prompt that the truth depends on; all of it where nothing is found."""
    found = re.search(find, prompt) if find else None
    return found[0] if found else prompt


def _parts(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """A schema per property, so that a value depends on no other property; None if the answer is no object of them."""
    if not isinstance(schema.get("properties"), dict):
        return None
    rest = {key: value for key, value in schema.items() if key not in ("properties", "required")}
    return {
        name: {**rest, "properties": {name: part}, "required": [name]}
        for name, part in schema["properties"].items()
    }


def _seed(*parts: str) -> int:
    return seed_of(blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=8).digest())
