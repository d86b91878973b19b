"""The records of a run's looks: what a worker has learned of the shards, so that the next one need not read it again.

A worker lists a shard as *begun* before it creates the first record of the shard's journal, and as *reopened* before it
adds to the journal of a shard that is staged. So a shard that is not listed has an empty journal, and that of a staged
one is as it was seen, unless it was reopened. Everything else here is a help: a journal can only be longer than it was
seen, and a record that is appended to it meets whatever stands there.

The records of a run are numbered. Record N covers those after `below(N)` up to N, as in a binary counter, so a reader
needs a number of records that grows with the logarithm of the looks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import orjson

from airflow_batch_llm.core.journal import Entry, RecordKind


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenShard:
    """A shard's journal as a worker knew it, without a vendor's words."""

    entries: tuple[Entry, ...]
    cost: float | None = None
    """The dollars of its answers. None: it was not staged."""

    @property
    def is_staged(self) -> bool:
        return any(entry.kind is RecordKind.STAGED for entry in self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """Keep what one look has learned, or several. Two of them can be merged in any order, and more than once."""

    begun: frozenset[int] = frozenset()
    reopened: frozenset[int] = frozenset()
    shards: Mapping[int, SeenShard] = field(default_factory=dict)

    def merged(self, other: "Looked") -> "Looked":
        """Return what both know. Of two views of a journal the longer one counts."""
        shards = dict(self.shards)
        for number, seen in other.shards.items():
            known = shards.get(number)
            if known is None or len(known.entries) <= len(seen.entries):
                shards[number] = seen
        return Looked(begun=self.begun | other.begun, reopened=self.reopened | other.reopened, shards=shards)

    def to_json(self, nonce: str) -> bytes:
        """Return the record as it is stored."""
        shards = {
            str(number): {"journal": [_stored(entry) for entry in seen.entries], "cost": seen.cost}
            for number, seen in self.shards.items()
        }
        fields = {
            "nonce": nonce,
            "begun": _ranges(self.begun),
            "reopened": _ranges(self.reopened),
            "shards": shards,
        }
        return orjson.dumps(fields)

    @classmethod
    def from_json(cls, data: bytes) -> "Looked":
        fields = orjson.loads(data)
        shards = {
            int(number): SeenShard(
                entries=tuple(Entry.from_json(orjson.dumps(entry)) for entry in seen["journal"]),
                cost=seen["cost"],
            )
            for number, seen in fields["shards"].items()
        }
        return cls(begun=_numbers(fields["begun"]), reopened=_numbers(fields["reopened"]), shards=shards)


def _stored(entry: Entry) -> object:
    return orjson.loads(replace(entry, detail="").to_json())


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Return the first and the last number of each row of neighbours."""
    ordered = sorted(numbers)
    gaps = [(left, right) for left, right in pairwise(ordered) if right > left + 1]
    starts = ordered[:1] + [right for _, right in gaps]
    ends = [left for left, _ in gaps] + ordered[-1:]
    return [[start, end] for start, end in zip(starts, ends, strict=True)]


def _numbers(ranges: Sequence[Sequence[int]]) -> frozenset[int]:
    return frozenset(number for start, end in ranges for number in range(start, end + 1))


def below(number: int) -> int:
    """Return the number of the last record that record `number` does not cover. 0: it covers all before it."""
    return number & (number - 1)


def find_last(exists: Callable[[int], bool]) -> int:
    """Return the last number for which a record exists, where none is missing before it. 0: there is none."""
    after = 1
    while exists(after):
        after *= 2
    last = after // 2
    while last + 1 < after:
        middle = (last + after) // 2
        if exists(middle):
            last = middle
        else:
            after = middle
    return last


def cover(last: int) -> list[int]:
    """Return the records that cover all from 1 to `last` together, the newest first."""
    numbers = []
    while last:
        numbers.append(last)
        last = below(last)
    return numbers
