"""Result lines as no vendor should write them: `python -m tests.fuzz --minutes 10` (`make fuzz`).

A whole shard is built for each provider: the simulator answers lines that the adapter encoded, and some of them are
then spoiled. The shard is judged and landed as a stage does it. Nothing may be raised, and each request has one outcome.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.core.answer import AnswerParser
from airflow_batch_llm.core.model import Call, Outcome, Usage
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.packing import Layout
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.report import Report, Spent
from airflow_batch_llm.core.request import custom_id
from airflow_batch_llm.providers import PROVIDERS as REGISTERED
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access, Provider
from airflow_batch_llm.simulator.anthropic.rows import NEWEST_VERSION, AnthropicRows
from airflow_batch_llm.simulator.controls import Knobs
from airflow_batch_llm.simulator.database import RowFate as Skipped
from airflow_batch_llm.simulator.meters import Billing, PrefixCache
from airflow_batch_llm.simulator.openai.rows import OpenAIRows
from airflow_batch_llm.simulator.request import Reply, RowError, StopReason
from airflow_batch_llm.simulator.vendor import Rows
from airflow_batch_llm.simulator.vertex.rows import VertexRows
from airflow_batch_llm.stage.land.gathering import LineJudge, ReadResults, ResultReader
from airflow_batch_llm.stage.land.landing import Bookkeeping, RowWriter
from airflow_batch_llm.stage.plan.spool import ATTEMPTS, INPUT_HASH, REQUEST, SHARED
from airflow_batch_llm.warehouses.base import ARROW_TYPES, Target

TOKEN = "b1f0-0001"
REQUESTS = 12
PROVIDERS = tuple(REGISTERED)

_BILLING = Billing(
    knobs=Knobs(cached_tokens=3, cache_write_tokens=2, reasoning_tokens=7), prefixes=PrefixCache(), now=0.0
)
_SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"type": "string"},
        "score": {"type": "integer"},
        "price": {"type": "number"},
        "day": {"type": "string", "format": "date"},
        "more": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["label"],
}
_ANSWER = '{"label": "bug", "score": 4, "price": 1.5, "day": "2026-05-04", "more": ["a", "b"]}'
_ANSWERS: Sequence[Reply | Skipped] = (
    *[Reply(_ANSWER)] * 5,
    Reply("```json\n" + _ANSWER + "\n```"),
    Reply(_ANSWER[:20], StopReason.LENGTH),
    Reply("", StopReason.REFUSED),
    Reply("", StopReason.FILTERED),
    Reply(error=RowError(500, "", "Overloaded.")),
    Skipped.EXPIRED,
    Reply("  "),
)

_DEPTH = 100_000
#: What a spoiled value becomes: the text is JSON, or nearly.
_ODD_TEXTS = (
    "null", "true", "-1", "1.5", "2.0", "1e999", "-1e999", "NaN", "12345678901234567890123", "9223372036854775808",
    '"ten"', '"7"', '""', '"\\u0000"', '"a\\u0000\\ud800b"', '"\\ud83d"', "[]", "{}", "[[]]", '[{"type": "text"}]',
    '{"a": 1}', '{"code": []}', "[" * _DEPTH + "]" * _DEPTH, '{"a":' * _DEPTH + "1" + "}" * _DEPTH, "[" * 700 + "]" * 700,
    "9" * 5000, '"' + "x" * 20_000 + '"', '"```\\n' + " " * 20_000 + '"', "0", "1", '"custom_id"',
)  # fmt: skip
_LINES = (
    b"",
    b"null",
    b"7",
    b'"text"',
    b"[]",
    b"{}",
    b"<html>Sign in</html>",
    b"\xff\xfe\x00",
    b"[" * _DEPTH,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One provider with a shard of whole lines."""

    provider: Provider
    gatherer: ResultReader
    lines: tuple[bytes, ...]


@cache
def subject(name: str) -> Subject:
    """The provider of this name, and what the simulator answers to a shard of it."""
    model, rows = ROWS[name]
    options = {"project": "p", "staging": "gs://b/f"} if name == "vertex" else {}
    provider = connect(name, Access(api_key="any", base_url="http://127.0.0.1:1", options=options))
    template = provider.encode(Call(model=model, schema=_SCHEMA))
    simulated = rows()
    lines = []
    for ordinal, answer in enumerate(_ANSWERS):
        parsed = simulated.read(template.line(custom_id(TOKEN, ordinal), b'"say hi"'))
        told = (
            simulated.write(parsed, answer) if isinstance(answer, Reply) else simulated.skip(parsed, answer)
        )
        if told.line:
            lines.append(told.line.rstrip(b"\n"))
    judge = LineJudge(
        provider=provider,
        parser=AnswerParser.of(OutputType.of(_SCHEMA)),
        prices=PriceList.of(name, model, at=1.78e9),
    )
    return Subject(provider=provider, gatherer=ResultReader(lines=judge), lines=tuple(lines))


ROWS: dict[str, tuple[str, Callable[[], Rows]]] = {
    "anthropic": ("claude-haiku-4-5", lambda: AnthropicRows(NEWEST_VERSION, _BILLING)),
    "openai": ("gpt-5-mini", lambda: OpenAIRows("/v1/chat/completions", 1, _BILLING)),
    "vertex": ("gemini-2.5-flash", lambda: VertexRows("gemini-2.5-flash", "2026-05-04T00:00:00Z", _BILLING)),
}


def spoiled(chance: random.Random, lines: Sequence[bytes]) -> list[bytes]:
    """The lines of a shard, of which some are changed, cut, glued, repeated, or replaced."""
    changed = list(lines)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(changed))
        changed[at] = chance.choice((_with_odd_value, _with_odd_value, _with_odd_bytes, _replaced))(
            chance, changed[at], changed
        )
    if chance.random() < 0.3:
        changed.append(chance.choice(changed))
    chance.shuffle(changed)
    return changed


def _with_odd_value(chance: random.Random, line: bytes, _: Sequence[bytes]) -> bytes:
    """Change or delete one value somewhere in the line, or its key."""
    try:
        value = orjson.loads(line)
        spots = list(_spots(value))
    except (ValueError, RecursionError):
        return line
    if not spots:
        return line
    holder, key = chance.choice(spots)
    mark = f"mark{chance.getrandbits(60)}"
    match chance.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[mark] = holder.pop(key)
        case _:
            holder[key] = mark
    text = json.dumps(value).replace(f'"{mark}"', chance.choice(_ODD_TEXTS))
    return text.encode()


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    keys: Sequence[Any] = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        yield value, key
        yield from _spots(value[key])


def _with_odd_bytes(chance: random.Random, line: bytes, others: Sequence[bytes]) -> bytes:
    """Return the line with some bytes changed, deleted or inserted."""
    start = chance.randrange(len(line) + 1)
    end = min(len(line), start + chance.randrange(1, 40))
    between = chance.choice((b"", chance.randbytes(3), b"\\ud800", b"\\u0000", b"}", b'"', b"[" * 3000))
    match chance.randrange(4):
        case 0:
            return line[:start]
        case 1:
            return line[:start] + chance.choice(others)
        case 2:
            return line[:start] + between + line[start:]
        case _:
            return line[:start] + between + line[end:]


def _replaced(chance: random.Random, line: bytes, _: Sequence[bytes]) -> bytes:
    return chance.choice((*_LINES, b"[" + line + b"]", line + line))


def judged(name: str, lines: Sequence[bytes]) -> ReadResults:
    """The shard's lines as a stage judges them. No exception is expected."""
    kept = [line for line in lines if line]
    return subject(name).gatherer.gather([("batch_1", kept)], token=TOKEN, layout=Layout.alone(REQUESTS))


_TARGET = Target(
    table="answers",
    failures="failures",
    key=pa.schema([("id", pa.int64())]),
    answer=pa.schema([(column.name, ARROW_TYPES[column.type]) for column in OutputType.of(_SCHEMA).columns]),
)
_STAMP = Bookkeeping(
    run_id="run", shard=1, spec_hash="s", model="m", route="default", planned_at=0.0, processed_at=0.0, max_attempts=3, tries=1,
    raw_excerpt=True,
)  # fmt: skip


@contextmanager
def landing_place() -> Iterator[Path]:
    """A folder with the keys of the shard."""
    with tempfile.TemporaryDirectory() as name:
        numbers = list(range(REQUESTS))
        keys = pa.table(
            {
                "id": pa.array(numbers, pa.int64()),
                REQUEST: pa.array(numbers, pa.int64()),
                INPUT_HASH: pa.array(["h"] * REQUESTS),
                ATTEMPTS: pa.array([0] * REQUESTS, pa.int64()),
                SHARED: pa.array([False] * REQUESTS),
            }
        )
        pq.write_table(keys, Path(name) / "keys.parquet")
        yield Path(name)


def landed(gathered: ReadResults, place: Path) -> Counter[Outcome]:
    """The rows by outcome, after they were written as both tables' columns and the report was stored."""
    tally = RowWriter(_TARGET, _STAMP, gathered.judged).write(
        place / "keys.parquet", place / "answers", place / "failures"
    )
    usage = Usage.total(list(gathered.judged.usages()))
    report = Report(outcomes=tally.outcomes, usage=usage, spent=Spent(cost=gathered.judged.cost))
    orjson.dumps(report.to_json())
    assert math.isfinite(gathered.judged.cost)
    return tally.outcomes


def check(name: str, seed: int, place: Path) -> Counter[Outcome]:
    """Spoil one shard, judge it, and land it. Every request has exactly one outcome."""
    gathered = judged(name, spoiled(random.Random(seed), subject(name).lines))
    outcomes = landed(gathered, place)
    assert outcomes.total() == REQUESTS, outcomes
    return outcomes


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--seed", type=int, default=time.time_ns())
    given = options.parse_args()
    end, seed, shards, outcomes = time.monotonic() + 60 * given.minutes, given.seed, 0, Counter[Outcome]()
    print(f"fuzz: {given.minutes:g} minutes from seed {seed}", flush=True)
    with landing_place() as place:
        while time.monotonic() < end:
            name = PROVIDERS[shards % len(PROVIDERS)]
            try:
                outcomes += check(name, seed + shards, place)
            except BaseException:
                print(f"fuzz: the shard of {name} with seed {seed + shards} escaped", file=sys.stderr)
                raise
            shards += 1
    told = ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items()))
    print(f"fuzz: {shards:,} shards, {shards * REQUESTS:,} requests, no escape ({told})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
