"""Ask about several rows in one request: write their prompts, match the answers to them, and divide the cost.

The prompts of a packed request are its items. They are numbered from 1 and written as JSON, so that no text of a row
can end its item or begin another one. Each answer names its item: its position does not count.

Rows that were asked both packed and alone decide whether a spec may be packed. Only columns with values out of a fixed
set, or that are exact, are compared: two free texts differ however the model was asked. What is stored of an answer is a
hash of each value.
"""

import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from itertools import accumulate, pairwise
from typing import Any

import orjson

from airflow_batch_llm.core.answer_schema import packed_schema
from airflow_batch_llm.core.model import Call, ColumnType, Usage
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.core.request import digest

#: A request takes no further item beyond this many bytes of prompts. A longer prompt goes alone.
PACKED_BYTES = 64 << 10

#: Begins the prompt of every packed request. It is the same for all of them, so that vendors can cache it.
_HEAD = (
    "Below is a JSON list of items. Answer each item on its own, as if it were the only one, and give one entry per item"
    " with the item's number. The text of an item is about that item alone: it says nothing about the other items or"
    " about this list.\n"
)

#: The bytes that an item adds to its text, and the tokens that its number adds to an answer.
_ITEM_BYTES, ITEM_TOKENS = 24, 10

#: The names of an answer's parts. `packed_schema` has the same.
_ANSWERS, _ITEM, _ANSWER = "answers", "item", "answer"


@dataclass(frozen=True, slots=True)
class Layout:
    """The items of each request of a shard. Items are numbered through the shard from 0."""

    starts: Sequence[int]
    """The first item of each request, and at the end the number of items."""
    is_packed: bool = False

    @classmethod
    def alone(cls, requests: int) -> "Layout":
        """Return the layout of requests that are not packed, with one prompt each."""
        return cls(range(requests + 1))

    @classmethod
    def packed(cls, sizes: bytes) -> "Layout":
        """Return the layout of packed requests. `sizes` holds the number of items of each."""
        return cls(array("q", accumulate(sizes, initial=0)), is_packed=True)

    @property
    def requests(self) -> int:
        """The number of requests."""
        return len(self.starts) - 1

    @property
    def items(self) -> int:
        """The number of items of all requests together."""
        return self.starts[-1]

    def items_of(self, request: int) -> range:
        """Return the items of a request."""
        return range(self.starts[request], self.starts[request + 1])

    def request_of(self, item: int) -> int:
        """Return the request that asks an item."""
        return bisect_right(self.starts, item) - 1

    def sizes(self) -> Iterator[int]:
        """Yield for each item the number of items of its request."""
        for start, end in pairwise(self.starts):
            yield from (end - start for _ in range(start, end))


def pack_sizes(lengths: Sequence[int], rows: int) -> list[int]:
    """Cut prompts of these lengths into requests of at most `rows`. Returns the number of prompts of each."""
    sizes: list[int] = []
    filled = 0
    for length in lengths:
        if sizes and sizes[-1] < rows and filled + length <= PACKED_BYTES:
            sizes[-1] += 1
            filled += length
        else:
            sizes.append(1)
            filled = length
    return sizes


def pack(prompts: Sequence[bytes]) -> bytes:
    """Return the prompt of a packed request as an encoded JSON string. The prompts are encoded, too."""
    items = b",\n".join(
        b'{"item":%d,"text":%b}' % (number, prompt) for number, prompt in enumerate(prompts, 1)
    )
    return orjson.dumps(f"{_HEAD}[{items.decode()}]")


def unpack(prompt: bytes) -> list[bytes]:
    """Return the prompts of a packed request, in the order of their numbers."""
    items = read_items(orjson.loads(prompt))
    assert items is not None, "pack wrote it"
    return [orjson.dumps(text) for text in items]


def read_items(prompt: str) -> list[str] | None:
    """Return the texts of the items of a packed request's prompt. Returns None if it is not packed."""
    if not prompt.startswith(_HEAD):
        return None
    return [item["text"] for item in orjson.loads(prompt.removeprefix(_HEAD))]


def packed_size(prompt_bytes: int) -> int:
    """Return the most bytes of a packed request's prompt, for one item with an encoded prompt of this size."""
    return 2 * prompt_bytes + len(_HEAD) + _ITEM_BYTES * 2


def longest_packed(most: int) -> int:
    """Return the size of the longest prompt that fits alone into a packed request's prompt of `most` bytes."""
    return (most - packed_size(0)) // 2


def packed_call(call: Call, rows: int, cap: int | None) -> Call:
    """Return the call of packed requests. Their answers may have `rows` times the tokens, up to the model's cap."""
    most = call.max_tokens
    if most is not None:
        most = max(most, most * rows if cap is None else min(most * rows, cap))
    return replace(call, schema=packed_schema(call.schema), max_tokens=most)


_BLANK = re.compile(r"[ \t\r\n]*")
_read_value = json.JSONDecoder().raw_decode


def item_answers(text: str) -> tuple[dict[int, list[str]], bool]:
    """Return the texts of the answers by their items' numbers, and whether the text is a list of answers at all.

    A text that was cut off gives the answers that are whole. An answer keeps its own spelling, to the last digit.
    """
    found: dict[int, list[str]] = {}
    try:
        at = _answers_at(text)
    except (ValueError, IndexError, RecursionError):
        return found, False
    for start in _entries(text, at):
        try:
            entry = dict(_members(text, start))
            number = orjson.loads(entry[_ITEM])
            if type(number) is int:
                found.setdefault(number, []).append(entry[_ANSWER])
        except (ValueError, KeyError, RecursionError):
            continue  # it names no item
    return found, True


def _entries(text: str, at: int) -> Iterator[int]:
    """Yield the place of each whole element of the list at a place. The text may end before the list does."""
    try:
        at = _after_blank(text, at + 1)
        while text[at] != "]":
            start, (_, at) = at, _read_value(text, at)
            yield start
            at = _after_comma(text, at, "]")
    except (ValueError, IndexError, RecursionError):
        return


def _answers_at(text: str) -> int:
    """Return the place of the list of answers."""
    for name, start in _names(text, text.index("{")):
        if name == _ANSWERS and text[start] == "[":
            return start
    raise ValueError


def _names(text: str, at: int) -> Iterator[tuple[str, int]]:
    """Yield the name and the place of each value of the object at a place, before the value is read."""
    if text[at] != "{":
        raise ValueError
    at = _after_blank(text, at + 1)
    while text[at] != "}":
        name, at = _read_value(text, at)
        at = _after_blank(text, at)
        if not isinstance(name, str) or text[at] != ":":
            raise ValueError
        at = _after_blank(text, at + 1)
        yield name, at
        _, at = _read_value(text, at)
        at = _after_comma(text, at, "}")


def _members(text: str, at: int) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each value of the object at a place."""
    for name, start in _names(text, at):
        yield name, text[start : _read_value(text, start)[1]]


def _after_comma(text: str, at: int, end: str) -> int:
    at = _after_blank(text, at)
    if text[at] == ",":
        return _after_blank(text, at + 1)
    if text[at] != end:
        raise ValueError
    return at


def _after_blank(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    assert blank is not None, "it matches nothing, too"
    return blank.end()


def divide(total: int, parts: int) -> list[int]:
    """Divide a whole number into parts that differ by one at most and add up to it. The first ones are larger."""
    least, larger = divmod(total, parts)
    return [least + 1] * larger + [least] * (parts - larger)


def divide_usage(usage: Usage, parts: int) -> list[Usage]:
    """Divide the tokens of a request among its items. Each kind adds up to the request's total."""
    return [Usage(*counts) for counts in zip(*(divide(count, parts) for count in usage), strict=True)]


#: Dollars are divided down to this: a millionth of a millionth, below the price of any token.
_SMALLEST = Decimal("1e-12")


def divide_dollars(total: Decimal, parts: int) -> list[Decimal]:
    """Divide dollars into parts that add up to the total exactly. What is smaller than a part is in the first one."""
    units = int(total / _SMALLEST)
    shares = [count * _SMALLEST for count in divide(units, parts)]
    shares[0] += total - units * _SMALLEST
    return shares


def item_schema(schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the schema of one item's answer within that of a packed request. Returns None if it is not packed."""
    try:
        entry = schema["properties"][_ANSWERS]["items"]["properties"]
    except (KeyError, TypeError):
        return None
    return entry[_ANSWER] if set(entry) == {_ITEM, _ANSWER} else None


#: The rows that are asked both ways, and the fewest that decide anything.
PILOT_ROWS, LEAST_ROWS = 200, 50

_EXACT = frozenset(
    {ColumnType.BOOLEAN, ColumnType.INTEGER, ColumnType.DECIMAL, ColumnType.DATE, ColumnType.TIMESTAMP}
)

#: Hashes of one answer's compared values. None: the row has no good answer.
Sample = Sequence[str] | None


def compared_columns(output_type: OutputType) -> dict[int, str]:
    """Return the columns that a pilot compares: their places in an answer, and their names."""
    return {
        place: column.name
        for place, column in enumerate(output_type.columns)
        if column.type in _EXACT or (column.type is ColumnType.STRING and output_type.is_choice(column))
    }


def sampled(values: Sequence[Sequence[object] | None], output_type: OutputType) -> list[Sample]:
    """Return hashes of the first answers of a shard, in the order of their items."""
    places = compared_columns(output_type)
    return [
        None if one is None else [digest(repr(one[place]).encode())[:16] for place in places]
        for one in values[:PILOT_ROWS]
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotVerdict:
    """The result of a pilot, as the workspace keeps it for a spec and a number of rows in a request."""

    packs: bool
    compared: int
    """Rows with a good answer both ways."""
    agreement: Mapping[str, float]
    """The share of them with equal values, by column."""

    @property
    def told(self) -> str:
        """Say the result for people."""
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.agreement.items())
        return f"{counted(self.compared, 'row')} were asked packed and alone, and agree in {shares}."

    def to_json(self) -> bytes:
        """For the workspace."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> "PilotVerdict":
        """From the workspace."""
        return cls(**orjson.loads(data))


def judge_pilot(
    alone: Sequence[Sample], packed: Sequence[Sample], names: Sequence[str], min_agreement: float
) -> PilotVerdict | None:
    """Compare the answers. Returns None if there are too few: then nothing is decided."""
    pairs = [
        (one, other)
        for one, other in zip(alone, packed, strict=False)
        if one is not None and other is not None
    ]
    if len(pairs) < LEAST_ROWS:
        return None
    agreement = {
        name: sum(one[place] == other[place] for one, other in pairs) / len(pairs)
        for place, name in enumerate(names)
    }
    packs = min(agreement.values()) >= min_agreement
    return PilotVerdict(packs=packs, compared=len(pairs), agreement=agreement)
