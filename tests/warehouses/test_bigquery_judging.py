"""BigQuery judges answers as a worker does, or leaves them to it."""

import random
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from airflow_batch_llm.core.answer import Answer, AnswerParser
from airflow_batch_llm.core.model import ColumnType, Outcome
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.request import canonical
from airflow_batch_llm.providers.vertex.lines import RESULT_FORM, decode
from airflow_batch_llm.stage.land.gathering import _name
from airflow_batch_llm.warehouses.bigquery.judging import judged_sql
from tests.emulators.servers import Emulators
from tests.golden import check_golden
from tests.warehouses.bigquery_dataset import BigQueryDataset

GOLDEN = Path(__file__).with_name("golden_bigquery") / "judged.sql"

RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12, "description": "Who."},
        "mood": {"type": "string", "enum": ["glad", 'so "so"', "très triste"]},
        "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 200},
        "score": {"anyOf": [{"type": "number", "minimum": -1.5, "maximum": 1e6}, {"type": "null"}]},
        "price": {"type": "number", "format": "decimal", "maxDigits": 6, "decimalPlaces": 2, "minimum": 0.0},
        "is_open": {"type": "boolean"},
        "day": {"type": "string", "format": "date"},
        "at": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
        "lines": {
            "type": "array",
            "items": {"$ref": "#/$defs/line"},
            "maxItems": 3,
        },
        "buyer": {
            "type": "object",
            "properties": {"zip": {"type": "string"}, "vip": {"type": "boolean"}},
            "required": ["zip"],
        },
        "note": {"type": "string"},
    },
    "required": ["name", "mood", "age", "is_open", "day", "lines"],
    "additionalProperties": False,
    "$defs": {
        "line": {
            "type": "object",
            "properties": {"sku": {"type": "string"}, "amount": {"type": "number"}},
            "required": ["sku", "amount"],
        }
    },
}
GOOD = {
    "name": "Ann",
    "mood": "glad",
    "age": 41,
    "score": 0.30000000000000004,
    "price": 12.5,
    "is_open": True,
    "day": "2026-02-28",
    "at": "2026-02-28T10:11:12.250+05:30",
    "lines": [{"sku": "a", "amount": 1.5}, {"sku": "é\U0001f600", "amount": -2}],
    "buyer": {"zip": "0123", "vip": False},
    "note": 'say "hi" \\ / \n\t\u2028',
}
#: For each property, what an answer may hold at it; `None` leaves it out, and a text is JSON as it stands.
ODD: dict[str, tuple[str | None, ...]] = {
    "name": (
        '""',
        '"a\\u0000b"',
        '"\\ud83d\\ude00"',
        '"\\ud800"',
        '"' + "x" * 13 + '"',
        "7",
        None,
        '"\\/\\b\\f\\u00e9"',
        '"\U0001f600 e\u0301"',
    ),
    "mood": ('"Glad"', '"so \\"so\\""', '"tr\\u00e8s triste"', '"très triste"', "null", '" glad"'),
    "age": (
        "-1",
        "0",
        "-0",
        "199",
        "200",
        "1.0",
        "1e2",
        "01",
        "9007199254740993",
        "99999999999999999999",
        '"5"',
        "null",
        "true",
    ),
    "score": (
        "null",
        "-0.0",
        "-0",
        "0.0",
        "1e-7",
        "1E+5",
        "1000000.0001",
        "1e400",
        "-1.5",
        "123456789012345678901.5",
        None,
        "0.1e1",
        "-0.5",
        "12345678901234567",
    ),
    "price": ("0", "9999.99", "10000", "1.505", "1.500", "-1", "-0.0", "1e2", '"1.5"', "null", None, "0.1"),
    "is_open": ("false", '"true"', "1", "null"),
    "day": (
        '"2026-02-30"',
        '"2024-02-29"',
        '" 2026-01-01"',
        '"20260101"',
        '"0001-01-01"',
        '"0000-01-01"',
        '"2026-01-01T00:00:00"',
        '"x"',
    ),
    "at": (
        '"2026-02-28"',
        '"2026-02-28T23:59:59"',
        '"2026-02-28T23:59:59.123456Z"',
        '"2026-02-28 23:59:59Z"',
        '"2026-02-28T24:00:00Z"',
        "null",
        None,
        '"2026-02-30T00:00:00Z"',
        '"2026-02-28T23:59:59-23:00"',
        '"1999-12-31T23:59:59-13:30"',
    ),
    "lines": (
        "[]",
        "[ ]",
        "null",
        '[{"sku":"a"}]',
        '[{"amount":1,"sku":"a"}]',
        '[{"sku":"a","amount":1,"x":2}]',
        '[{"sku":"a","amount":1}]',
        ",".join(['[{"sku":"a","amount":1}', *['{"sku":"b","amount":2}'] * 3]) + "]",
        '[{"sku":"a","amount":1},]',
    ),
    "buyer": (
        "null",
        '{"zip":"1"}',
        '{"zip":"1","vip":null}',
        '{ "zip" : "1" , "vip" : true }',
        "{}",
        None,
        '{"vip":true,"zip":"1"}',
    ),
    "note": (
        "null",
        None,
        '""',
        '"tab\tin it"',
        '"' + "long " * 3000 + '"',
        '"\\u2028"',
        '"{\\"a\\": 1}"',
        '"```"',
    ),
}


def answers() -> Iterator[str]:
    """Yield texts that a model may answer with."""
    spelled = {name: orjson.dumps(value).decode() for name, value in GOOD.items()}
    whole = orjson.dumps(GOOD).decode()
    yield whole
    yield orjson.dumps(GOOD, option=orjson.OPT_INDENT_2).decode()
    for name, values in ODD.items():
        for value in values:
            yield written({**spelled, name: value})
    yield from (
        f" \n{whole}\t",
        f"```json\n{whole}\n```",
        f"{whole},",
        f"[{whole}]",
        whole[:-1],
        f"\ufeff{whole}",
    )
    yield from (
        f'{whole[:-1]},"note":"twice"}}',
        f'{whole[:-1]},"more":1}}',
        f"\u2003{whole}",
        f"{whole}\x00",
    )
    yield written(dict(reversed(spelled.items())))
    yield from (
        "",
        " \n\u3000",
        "free text",
        '{"label": "good"}',
        '{"label":"good"}',
        "good",
        '"good"',
        '{"label":"GOOD"}',
    )
    yield from (
        '{"label":"bad/\\\\ly"}',
        '{"label":"good","x":1}',
        '{"answer": [1, 2]}',
        '{"answer":[]}',
        '{"answer":["a"]}',
        '{"answer":[1,2,3]}',
        '{"answer":7}',
        "null",
    )
    yield from (
        "nul \x00",
        "it's `a` {{ }} @p ? %",
        "Grüße \U0001f600\u2028",
        "\x0b\x1f\x85",
        " text ",
        "\\u0041 \\ud800",
    )
    chance = random.Random(3)
    for _ in range(60):
        some = {
            name: chance.choice(ODD[name]) if chance.random() < 0.1 else value
            for name, value in spelled.items()
        }
        yield written(some)


def written(members: dict[str, str | None]) -> str:
    return "{" + ",".join(f'"{name}":{value}' for name, value in members.items() if value is not None) + "}"


def response(text: str | None, **more: Any) -> dict[str, Any]:
    parts = [] if text is None else [{"text": text}]
    return {
        "candidates": [{"content": {"parts": parts, "role": "model"}, "finishReason": "STOP"}],
        "modelVersion": "gemini-2.5-flash",
        "usageMetadata": {
            "promptTokenCount": 30,
            "candidatesTokenCount": 5,
            "thoughtsTokenCount": 2,
            "totalTokenCount": 37,
        },
        **more,
    }


def responses() -> Iterator[tuple[str | None, str | None]]:
    """Yield responses as JSON, each with its status."""
    for text in answers():
        yield orjson.dumps(response(text)).decode(), ""
    good = '{"label":"good"}'
    usages = (
        {"promptTokenCount": "30"},
        {"promptTokenCount": -1},
        {"promptTokenCount": 1.0},
        {"promptTokenCount": 1.5},
    )
    usages += (
        {},
        {"cachedContentTokenCount": 4, "toolUsePromptTokenCount": 3},
        {"promptTokenCount": None},
        {"promptTokenCount": 10**10},
    )
    for usage in (*usages, None, [], "x", [1]):
        yield orjson.dumps(response(good, usageMetadata=usage)).decode(), ""
    for model in (None, "", 5, "x" * 300, "m\x00"):
        yield orjson.dumps(response(good, modelVersion=model)).decode(), ""
    for feedback in (None, {}, {"blockReason": "SAFETY"}, []):
        yield orjson.dumps(response(good, promptFeedback=feedback)).decode(), ""
    parts: tuple[Any, ...] = (
        [{"text": "thinking", "thought": True}, {"text": '{"label":'}, {"text": '"good"}'}],
        [{"text": good, "thought": False}, {"functionCall": {"name": "f"}}],
        [{"text": good, "thought": None}],
        [{"text": good}, {"text": None}],
        [{"text": good}, {"text": 5}],
        [{"text": good}, "x"],
        [{"text": good, "thought": 1}],
        {"text": good},
        None,
    )
    for some in parts:
        for reason in ("STOP", "MAX_TOKENS", "SAFETY", None, "OTHER"):
            candidate = {"content": {"parts": some}, "finishReason": reason}
            yield orjson.dumps(response(good, candidates=[candidate])).decode(), ""
    for candidates in (None, [], {"0": {}}, [None], ["x"], [{}], [{"finishReason": "STOP"}]):
        yield orjson.dumps(response(good, candidates=candidates)).decode(), None
    yield orjson.dumps(response(good)).decode(), "Bad Request: 400"
    yield orjson.dumps(response(good)).decode(), None
    yield orjson.dumps(response(good, type="message")).decode(), None
    yield from (("{}", ""), ("[]", ""), (None, ""), ("null", None), ('"x"', None))
    yield orjson.dumps(response("Xx")).decode().replace("Xx", "\\ud800 lone"), ""
    yield orjson.dumps(response("Xx")).decode().replace("Xx", "\\ud83d\\ude00 pair"), ""


#: The least number of responses of which SQL is sure. A worker finds some more good answers.
SURE = {"text": 190, "label": 14, "record": 70, "list": 2}
OUTPUT_TYPES = {
    "text": OutputType.of(str),
    "label": OutputType.of(["good", "bad/\\ly"]),
    "record": OutputType.of(RECORD),
    "list": OutputType.of(
        {"anyOf": [{"type": "array", "items": {"type": "integer"}, "maxItems": 2}, {"type": "integer"}]}
    ),
}
SCHEMA = pa.schema(
    [("id", pa.int64()), ("custom_id", pa.string()), ("status", pa.string()), ("response", pa.string())]
)


@pytest.fixture(scope="module")
def database(emulators: Emulators) -> Iterator[BigQueryDataset]:
    """Yield a dataset with the responses in its table `results`."""
    with closing(BigQueryDataset(emulators.bigquery, emulators.bigquery_storage)) as dataset:
        rows = [
            {"id": at, "custom_id": f"b1-0001-{at:06d}", "status": status, "response": answer}
            for at, (answer, status) in enumerate(responses())
        ]
        dataset.make("results", SCHEMA, {})
        dataset.seed("results", pa.Table.from_pylist(rows, SCHEMA))
        yield dataset


def by_worker(
    custom_id: str, answer: str | None, status: str | None, parser: AnswerParser
) -> tuple[Any, ...] | None:
    """Return the row that a worker lands for a response, or None if it is not a good answer."""
    line = b'{"custom_id":%b,"status":%b,"response":%b}' % (
        orjson.dumps(custom_id),
        orjson.dumps(status),
        (answer or "null").encode(),
    )
    try:
        result = decode(line)
        model = _name(result.model)
    except (ValueError, TypeError):
        return None
    parsed = parser.parse(result.text or "")
    if result.outcome is not Outcome.SUCCEEDED or not isinstance(parsed, Answer):
        return None
    usage = result.usage
    return (
        model,
        usage.input_tokens,
        usage.cached_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        *parsed.values,
    )


@pytest.mark.parametrize("name", OUTPUT_TYPES)
def test_an_answer_of_which_sql_is_sure_is_the_one_that_a_worker_lands(
    database: BigQueryDataset, name: str
) -> None:
    output_type = OUTPUT_TYPES[name]
    parser = AnswerParser.of(OutputType.from_json(orjson.loads(orjson.dumps(output_type.to_json()))))
    query = judged_sql(output_type, RESULT_FORM, f"`{database.name}`.results")
    found = {row.pop("custom_id"): row for row in map(dict, database.client.query(query).result())}
    is_json = [column.type is ColumnType.JSON for column in output_type.columns]
    sure = good = 0
    for at, (answer, status) in enumerate(responses()):
        custom_id = f"b1-0001-{at:06d}"
        wanted = by_worker(custom_id, answer, status, parser)
        good += wanted is not None
        unsure, outcome, *values = found[custom_id].values()
        if unsure:
            assert (outcome, *values) == (None,) * (1 + len(values))
            continue
        sure += 1
        assert wanted is not None, (at, answer)
        assert outcome == "succeeded"
        read, meant = (
            [plain_value(value, json) for value, json in pairs]
            for pairs in (zip(of, is_json, strict=True) for of in (values[5:], wanted[5:]))
        )
        assert repr(read) == repr(meant), (at, answer)
        assert (*values[:5],) == wanted[:5], (at, answer)
    assert sure >= SURE[name], (good, sure)


def plain_value(value: Any, is_json: bool) -> Any:
    if isinstance(value, Decimal):
        return value.normalize()
    return canonical(orjson.loads(value)) if is_json and value is not None else value


def test_the_judgement_of_one_stage_in_sql() -> None:
    wanted = {
        "type": "object",
        "properties": {"label": {"enum": ["a", "b"]}, "n": {"type": "integer", "minimum": 1}},
    }
    sql = judged_sql(OutputType.of({**wanted, "required": ["label"]}), RESULT_FORM, "`p`.`d`.`answers`")
    check_golden(GOLDEN, f"{sql}\n".encode())


#: Schemas of which SQL is never sure.
UNSURE = {
    "a pattern": {"type": "string", "pattern": "^a"},
    "any value": {},
    "itself within": {"$ref": "#"},
    "no type": {"minimum": 1},
    "another keyword": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    "a bound within a list": {"type": "array", "items": {"type": "integer", "minimum": 1}},
    "a fraction in an enum": {"enum": [0.5]},
    "one of two": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "a decimal or another number": {"anyOf": [{"type": "number", "format": "decimal"}, {"type": "number"}]},
    "a name with a dot": {"type": "object", "properties": {"a.b": {"type": "string"}}, "required": ["a.b"]},
    "a long list of words": {"enum": ["x" * 100 + str(n) for n in range(400)]},
}


@pytest.mark.parametrize("name", UNSURE)
def test_a_schema_that_sql_cannot_say_leaves_every_answer_to_a_worker(name: str) -> None:
    wanted = {"type": "object", "properties": {"a": UNSURE[name]}, "required": ["a"]}
    sql = judged_sql(OutputType.of(wanted), RESULT_FORM, "answers")
    assert "AND FALSE, FALSE) AS sure" in sql
    known = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert "AND FALSE" not in judged_sql(OutputType.of(known), RESULT_FORM, "answers")
