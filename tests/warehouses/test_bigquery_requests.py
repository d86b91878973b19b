"""BigQuery writes the requests that a worker writes from the same rows, and hashes their inputs alike."""

import math
import random
import re
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from airflow_batch_llm.core.model import Call
from airflow_batch_llm.core.prompt import compile_prompt
from airflow_batch_llm.core.request import custom_id
from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.core.spec import input_hashes
from airflow_batch_llm.core.template import _PLAIN_TEXT_FILTERS, _SIMPLE_FILTERS
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.vertex.lines import encode
from airflow_batch_llm.stage.plan.reading import _plain
from airflow_batch_llm.warehouses.bigquery.requests import (
    custom_id_sql,
    encoded_bytes_sql,
    input_hash_sql,
    is_blank_sql,
    prompt_sql,
    request_sql,
    text_sql,
)
from tests.emulators.servers import Emulators
from tests.golden import check_golden
from tests.warehouses.bigquery_dataset import BigQueryDataset

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("text", pa.string()),
        ("n", pa.int64()),
        ("is_open", pa.bool_()),
        ("price", pa.decimal128(38, 9)),
        ("score", pa.float64()),
        ("day", pa.date32()),
        ("at", pa.time64("us")),
        ("wall", pa.timestamp("us")),
        ("moment", pa.timestamp("us", tz="UTC")),
    ]
)
TYPES = {
    "text": "STRING",
    "n": "INT64",
    "is_open": "BOOL",
    "price": "NUMERIC",
    "score": "FLOAT64",
    "day": "DATE",
    "at": "TIME",
    "wall": "DATETIME",
    "moment": "TIMESTAMP",
}
GOLDEN = Path(__file__).with_name("golden_bigquery") / "request.sql"
ODD = (
    'quote " and \\ slash / {{ n }} {% x %}',
    "\\u0041 \\x41 \\101 \\n",
    "nul \0",
    "line\nfeed\r\n\ttab \b\f\x01\x1f\x7f",
    "\u2028\u2029\x85\xa0\ufeff",
    "Grüße \U0001f600 e\u0301 \ud7ff\ue000 \uffff",
    "it's `a` --; /* @p ? %s {} $1 */",
    " \t padded \u3000\n",
    "",
    " \u2003\n",
    "long " * 5000,
)
FLOATS = (
    *(0.0, -0.0, 1.0, -1.5, 0.1 + 0.2, 1e15, 1e16, -123456789012345680.0, 9007199254740993.0, 1e22, 1e23),
    *(0.0001, 0.00001, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 2.0**-24, -(2.0**-44), 100.0),
    *(math.nan, math.inf, -math.inf),
)
PROMPTS = (
    "Sort this ticket: {{ text }}",
    "{{ text }}",
    'it\'s "{{ params.who }}"\n\t\\u0041 é\u2028 {{ n }}|{{ is_open }}|{{ price }}|{{ day }}|{{ at }}|{{ wall }}|{{ moment }}',
    "{{ text|trim }}|{{ text|length }}|{{ text|string|trim }}|{{ n|default }}|{{ n|d('none') }}|{{ is_open|trim }}",
    "{{ text|default('it\\'s', true) }}|{{ text|default('x', false)|length }}|{{ price|default(0)|trim }}|{{ score }}",
    "{{ text|truncate(20) }}|{{ text|truncate(9, true, '') }}|{{ moment|truncate(length=12, leeway=0, end='…') }}",
    "{{ text|replace('\\n', ' ')|replace(old='long', new='\\\\1')|truncate }}|{{ n|default(default_value='no') }}",
)
CALL = Call(
    model="gemini-2.5-flash",
    system_prompt='Sort "tickets"\n\\u0041 \x01 \U0001f600',
    schema={"type": "object", "properties": {"label": {"type": "string", "enum": ["a'b", "c"]}}},
    max_tokens=100,
    params={"labels": {"team": "x"}, "generationConfig": {"temperature": 0.5}},
)


def rows(count: int) -> list[dict[str, Any]]:
    chance = random.Random(7)

    def maybe(value: Any) -> Any:
        return None if chance.random() < 0.1 else value

    def number(i: int) -> float:
        if i < len(FLOATS):
            return FLOATS[i]
        if i % 3:
            return round(chance.uniform(-1e4, 1e4), chance.randrange(6))
        return float(struct.unpack("d", struct.pack("Q", chance.getrandbits(64)))[0])

    def moment() -> datetime:
        micros = chance.choice((0, 250_000, 1, 999_999))
        days = chance.randrange(700_000)
        return datetime(1, 1, 1) + timedelta(  # noqa: DTZ001  a wall clock
            days=days, seconds=chance.randrange(86_400), microseconds=micros
        )

    return [
        {
            "id": i,
            "text": maybe(ODD[i] if i < len(ODD) else "".join(chance.choices(ODD[:-1], k=2))),
            "n": maybe(chance.choice((0, -1, 7, 2**63 - 1, -(2**63), chance.randrange(10**9)))),
            "is_open": maybe(i % 2 == 0),
            "price": maybe(
                Decimal(chance.choice((0, 1, 100, -15, 10**27 + 1))).scaleb(-chance.randrange(10))
            ),
            "score": maybe(number(i)) if i >= len(FLOATS) else number(i),
            "day": maybe(moment().date()),
            "at": maybe(moment().time()),
            "wall": maybe(moment()),
            "moment": maybe(moment().replace(tzinfo=UTC)),
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def database(emulators: Emulators) -> Iterator[BigQueryDataset]:
    with closing(BigQueryDataset(emulators.bigquery, emulators.bigquery_storage)) as dataset:
        yield dataset


def test_a_request_in_sql_is_the_one_that_a_worker_writes(database: BigQueryDataset) -> None:
    database.make("tickets", SCHEMA, {})
    database.seed("tickets", pa.Table.from_pylist(rows(200), SCHEMA))
    prompts = [compile_prompt(prompt, {"who": "O'Neil\x01\0"}) for prompt in PROMPTS]
    template = encode(CALL)
    chosen = ["*", f"{input_hash_sql(tuple(TYPES), TYPES)} AS hash"]
    chosen += [f"{prompt_sql(prompt, TYPES)} AS p{at}" for at, prompt in enumerate(prompts)]
    chosen.append(f"{custom_id_sql(text_sql('b1-0001'), 'id + 999900')} AS custom_id")
    asked = [f"{request_sql(template, f'p{at}', 'custom_id')} AS r{at}" for at in range(len(prompts))]
    measured = [f"{encoded_bytes_sql('p1')} AS size", f"{is_blank_sql('p1')} AS blank"]
    query = f"SELECT *, {', '.join([*asked, *measured])} FROM (SELECT {', '.join(chosen)} FROM `{database.name}`.tickets)"
    with closing(database.open()) as warehouse:
        found = warehouse.read(Source(sql=f"SELECT * FROM ({query}) AS r ORDER BY id")).read_all()
    columns = {name: _plain(found.column(name).combine_chunks()) for name in found.column_names}
    values = {name: columns[name] for name in TYPES}
    assert columns["hash"] == input_hashes(values)
    ids = [custom_id("b1-0001", i + 999_900) for i in columns["id"]]
    assert columns["custom_id"] == ids
    for at, prompt in enumerate(prompts):
        told = prompt.render_batch({name: values[name] for name in prompt.columns or ()})
        for row, text in enumerate(told):
            if isinstance(text, bytes):
                assert columns[f"p{at}"][row] == orjson.loads(text), (at, row)
                line = orjson.loads(template.line(ids[row], text))
                assert orjson.loads(columns[f"r{at}"][row]) == line["request"]
            if at == 1:
                assert columns["blank"][row] == (not isinstance(text, bytes))
                assert not isinstance(text, bytes) or columns["size"][row] == len(text)


REFUSED = {
    "a function": lambda row: row["text"],
    "loops, conditions": "{% if n %}{{ text }}{% endif %}",
    "filters over several values": "{{ n + 1 }}",
    "a field of the column 'doc'": "{{ doc.a }}",
    "the column 'doc' of type JSON": "{{ doc }}",
    "the column 'tags' of type REPEATED STRING": "{{ tags }}",
    "the filter 'upper'": "{{ text|upper }}",
    "the filter 'lower'": "{{ text|lower }}",
    "the filter 'title'": "{{ text|title }}",
    "the filter 'capitalize'": "{{ text|capitalize }}",
    "the filter 'tojson'": "{{ text|tojson }}",
    "the filter 'join'": "{{ text|join }}",
    "the filter 'trim'": "{{ text|trim('x') }}",
    "the filter 'replace'": "{{ text|replace('a', 'b', 1) }}",
    "the filter 'truncate'": "{{ text|truncate(2) }}",
    "the filter 'length'": "{{ n|length }}",
    "the filter 'default'": "{{ n|default('', true) }}",
}


@pytest.mark.parametrize("feature", REFUSED)
def test_a_prompt_without_a_twin_in_sql_is_refused_with_a_remedy(feature: str) -> None:
    with pytest.raises(InputError, match=re.escape(feature)) as refused:
        prompt_sql(compile_prompt(REFUSED[feature]), {**TYPES, "doc": "JSON", "tags": "REPEATED STRING"})
    assert "execution='warehouse'" in str(refused.value)
    assert "source's query" in str(refused.value) or feature == "a function"


def test_every_filter_of_prompts_has_a_twin_or_is_refused() -> None:
    named = {name.split("'")[1] for name in REFUSED if name.startswith("the filter")}
    assert named | {"d", "string"} == {*_SIMPLE_FILTERS, *_PLAIN_TEXT_FILTERS}


def test_a_request_with_attachments_is_refused() -> None:
    with pytest.raises(InputError, match="images and PDFs"):
        request_sql(encode(replace(CALL, attachments=True)), "p", "i")


def test_the_request_of_one_stage_in_sql() -> None:
    prompt = compile_prompt("Sort: {{ text }} ({{ n|default('none') }})")
    types = {"text": "STRING", "n": "INT64"}
    call = replace(CALL, params={}, schema=None, system_prompt="Sort.")
    written = [
        prompt_sql(prompt, types),
        input_hash_sql(prompt.columns or (), types),
        custom_id_sql("'b1-0001'", "_llm_request"),
        request_sql(encode(call), "_llm_prompt", "custom_id"),
    ]
    check_golden(GOLDEN, "".join(f"{line}\n" for line in written).encode())
