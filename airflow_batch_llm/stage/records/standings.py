"""Read the rounds of a run folder, their journals and the results of landed shards.

A worker remembers the journals and results of a run's shards, each read once, with its own records added. A known
journal may have grown since, but it never changes. So a decision on known records is only a moment old. It leads to a
record at the next number, which fails if another worker has taken that number.
"""

import math
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import orjson

from airflow_batch_llm.core.canary import CanaryVerdict
from airflow_batch_llm.core.journal import Entry, Looked, SeenShard, Standing, below, cover, find_last, stand
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.packing import Sample
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedShard
from airflow_batch_llm.store import at_once


def read_rounds(folder: RunFolder) -> Iterator[Plan]:
    """Return the plans of the rounds so far, from the first. If the canary has ended the run, it is all of the first."""
    return (read_judged(folder, plan) for plan in read_plans(folder))


def read_plans(folder: RunFolder) -> Iterator[Plan]:
    """Yield the plans of the rounds so far as they were frozen."""
    number = 1
    while (data := folder.read_plan(number)) is not None:
        yield Plan.from_json(data)
        number += 1


def read_judged(folder: RunFolder, plan: Plan) -> Plan:
    """Return a plan as it counts after the verdict on its canary: the same if there is no canary, or no verdict."""
    return _judged(plan, folder.read_canary()) if plan.canary else plan


def read_sendable(folder: RunFolder, plan: Plan) -> Plan:
    """Return a plan as far as it may be sent: its canary alone, until that is judged."""
    if not plan.canary:
        return plan
    data = folder.read_canary()
    return plan.canary_alone() if data is None else _judged(plan, data)


def _judged(plan: Plan, data: bytes | None) -> Plan:
    return plan if data is None else ruled(plan, CanaryVerdict.from_json(data))


def ruled(plan: Plan, verdict: CanaryVerdict) -> Plan:
    """Return a plan as it counts after this verdict on its canary."""
    return plan.measured(verdict.estimates).without(verdict.left_out) if verdict.goes else plan.stopped()


class Again(NamedTuple):
    """A request, or an item of a packed one, that is worth another try."""

    request: int
    outcome: Outcome
    code: str | None = None
    """The error code of its rows. None: there is none, or an earlier release has landed the shard."""
    to: str | None = None
    """The name of the route that it takes next. None: the same."""
    rows: int | None = None
    """The most rows of the request that asks it next. None: as its route has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """The result of a landed shard. It is written again whenever the shard lands again."""

    report: Report
    again: Sequence[Again] = ()
    again_rows: Mapping[Outcome, int] = field(default_factory=dict)  # the rows that wait for these requests
    again_codes: Mapping[str, int] = field(default_factory=dict)  # the same rows by error code
    words: Mapping[str, str] = field(default_factory=dict)  # what a vendor said, by error code: for logs
    samples: Sequence[str] = ()  # a few keys of rows without a good answer
    failed_keys: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """A few keys of rows that are not asked again, by error code. Default: there are none, or an earlier release landed it."""
    again_keys: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The same for rows that wait for another try."""
    sample: Sequence[Sample] = ()  # what a pilot compares of its answers
    batches: Sequence[str] = ()  # whose lines were read: the shard's own, and strays that had ended by then

    def shown_keys(self) -> set[str]:
        """Return all keys that the record shows."""
        by_code = (*self.failed_keys.values(), *self.again_keys.values())
        return {*self.samples, *(key for keys in by_code for key in keys)}

    def without(self, keys: AbstractSet[str]) -> "ShardResult":
        """Return the record without these keys."""
        return replace(
            self,
            samples=[key for key in self.samples if key not in keys],
            failed_keys=_without(self.failed_keys, keys),
            again_keys=_without(self.again_keys, keys),
        )

    def to_json(self) -> bytes:
        return orjson.dumps(
            {
                "report": self.report.to_json(),
                "again": [tuple(one) for one in self.again],
                "again_rows": {outcome.value: count for outcome, count in self.again_rows.items()},
                "again_codes": self.again_codes,
                "words": self.words,
                "samples": self.samples,
                "failed_keys": self.failed_keys,
                "again_keys": self.again_keys,
                "batches": self.batches,
                **({"sample": self.sample} if self.sample else {}),
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> "ShardResult":
        fields = orjson.loads(data)
        return cls(
            report=Report.from_json(fields["report"]),
            again=tuple(
                Again(request, Outcome(outcome), *rest) for request, outcome, *rest in fields["again"]
            ),
            again_rows={Outcome(name): count for name, count in fields["again_rows"].items()},
            again_codes=fields.get("again_codes", {}),
            words=fields.get("words", {}),
            samples=fields["samples"],
            failed_keys=fields.get("failed_keys", {}),
            again_keys=fields.get("again_keys", {}),
            sample=fields.get("sample", ()),
            batches=fields.get("batches", ()),  # a file that an earlier release wrote does not tell
        )


def _without(by_code: Mapping[str, Sequence[str]], keys: AbstractSet[str]) -> dict[str, list[str]]:
    left = {code: [key for key in shown if key not in keys] for code, shown in by_code.items()}
    return {code: shown for code, shown in left.items() if shown}


def read_landed(folder: RunFolder, number: int) -> ShardResult:
    """Read the results of a loaded shard."""
    data = folder.read_landed(number)
    assert data is not None, "it is written before the journal says that the shard is staged"
    return ShardResult.from_json(data)


def read_all_landed(folder: RunFolder, numbers: Sequence[int]) -> dict[int, ShardResult]:
    """Read the results of those of these shards that have landed, by number."""
    found = zip(numbers, at_once(folder.read_landed, numbers), strict=True)
    return {number: ShardResult.from_json(data) for number, data in found if data is not None}


#: A record of looks that would be larger says nothing of journals: they are read then.
_LARGEST_LOOK = 8 << 20


@dataclass(slots=True, kw_only=True)
class RunMemory:
    """One generation of a run, as one worker knows it."""

    folder: RunFolder
    lists_shards: bool
    """Shards are listed before their journals begin. An earlier release has not done so."""
    _records: dict[int, Looked] = field(default_factory=dict)  # of looks, those that cover all
    _last: int = 0  # the number of the last of them
    _seen: Looked = field(default_factory=Looked)
    _entries: dict[int, tuple[Entry, ...]] = field(default_factory=dict)
    _standings: dict[int, Standing] = field(default_factory=dict)
    _landed: dict[int, ShardResult] = field(default_factory=dict)
    _news: set[int] = field(default_factory=set)  # shards of which no record of looks says what is known
    _adding: threading.Lock = field(default_factory=threading.Lock)  # shards may be worked on side by side

    @classmethod
    def of(cls, folder: RunFolder, plan: Plan) -> "RunMemory":
        """Read what earlier looks have left."""
        memory = cls(folder=folder, lists_shards=plan.lists_shards)
        if plan.lists_shards:
            memory._read_looks()
        return memory

    def _read_looks(self) -> None:
        found: dict[int, Looked] = {}

        def exists(number: int) -> bool:
            if number not in found and (data := self.folder.read_look(number)) is not None:
                found[number] = Looked.from_json(data)
            return number in found

        self._last = find_last(exists, self.folder.shown_look())
        numbers = cover(self._last)
        assert all(at_once(exists, numbers)), "no number is left out"
        for number in reversed(numbers):
            self._records[number] = found[number]
            self._seen = self._seen.merged(found[number])

    # Journals.

    def standings(self, plan: Plan) -> list[tuple[PlannedShard, Standing]]:
        """Return every shard of a round with its state, as far as this worker knows."""
        unread = [shard.number for shard in plan.shards if not self._is_known(shard.number)]
        at_once(self.read, unread)
        return [(shard, self.standing(shard.number)) for shard in plan.shards]

    def fresh_standings(self, plan: Plan) -> list[tuple[PlannedShard, Standing]]:
        """Return every shard of a round, and where its journal says now that it stands."""
        at_once(self.read, [shard.number for shard in plan.shards if not self._is_settled(shard.number)])
        return [(shard, self.standing(shard.number)) for shard in plan.shards]

    def entries(self, number: int) -> tuple[Entry, ...]:
        """Return the records of a journal as far as this worker knows. It is read if it never was."""
        if number in self._entries:
            return self._entries[number]
        if self.lists_shards and number not in self._seen.begun:
            return ()
        if self._is_known(number):
            return self._seen.shards[number].entries
        return self.read(number)

    def read(self, number: int) -> tuple[Entry, ...]:
        """Read a journal to its end. Known records are not read again."""
        known = self._entries.get(number)
        if known is None:
            known = self._seen.shards[number].entries if number in self._seen.shards else ()
        later = self.folder.journal(number, after=len(known))
        return self._learn(number, (*known, *later))

    def _learn(self, number: int, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        seen = self._seen.shards.get(number)
        if seen is None or len(entries) > len(seen.entries):
            self._news.add(number)
        self._entries[number] = entries
        self._standings.pop(number, None)
        return entries

    def standing(self, number: int) -> Standing:
        """Return a shard's state, as far as this worker knows."""
        if number not in self._standings:
            self._standings[number] = stand(self.entries(number))
        return self._standings[number]

    def _is_known(self, number: int) -> bool:
        if number in self._entries or (self.lists_shards and number not in self._seen.begun):
            return True
        return number in self._seen.shards and number not in self._seen.reopened

    def _is_settled(self, number: int) -> bool:
        """Return whether all records of the journal are known."""
        if not self.lists_shards or number in self._seen.reopened:
            return False
        if number not in self._seen.begun:
            return True
        return number in self._seen.shards and self._seen.shards[number].is_staged

    def append(self, number: int, at: int, entry: Entry) -> bool:
        """Create the record with this number. Returns False if another record has it, and then the journal is read again."""
        self.begin([number])
        known = self.entries(number)
        if self.standing(number).staged is not None:
            self._reopen(number)
        created = self.folder.append(number, at, entry)
        if created and len(known) == at - 1:
            self._learn(number, (*known, entry))
        else:
            self.read(number)
        return created

    def begin(self, numbers: Iterable[int]) -> None:
        """List these shards, before the first record of their journals."""
        with self._adding:
            new = frozenset(numbers) - self._seen.begun
            if self.lists_shards and new:
                self._add(Looked(begun=new))
                for number in new:
                    self._entries.setdefault(number, ())

    def _reopen(self, number: int) -> None:
        with self._adding:
            if self.lists_shards and number not in self._seen.reopened:
                self._add(Looked(reopened=frozenset({number})))

    # Records of looks.

    def leave(self) -> None:
        """Record this worker's knowledge for the next worker."""
        if self.lists_shards and self._news:
            # A vendor's words are only in the journal, from which they can be erased.
            told = {
                number: SeenShard(entries=self.entries(number), cost=self._cost(number))
                for number in sorted(self._news)
            }
            shards = {
                number: seen
                for number, seen in told.items()
                if seen.is_staged or not any(entry.detail for entry in seen.entries)
            }
            self._add(Looked(shards=shards))
            self._news.clear()

    def _add(self, looked: Looked) -> None:
        """Create the next record of looks. Another worker may be doing the same."""
        nonce = secrets.token_hex(6)
        while True:
            number = self._last + 1
            covered = looked
            for before in cover(self._last):
                if before > below(number):
                    covered = self._records[before].merged(covered)
            data = covered.to_json(nonce)
            if len(data) > _LARGEST_LOOK:
                covered = Looked(begun=covered.begun, reopened=covered.reopened)
                data = covered.to_json(nonce)
            is_mine = self.folder.create_look(number, data)
            if not is_mine:
                other = self.folder.read_look(number)
                assert other is not None, "a record that exists stays"
                covered = Looked.from_json(other)
            self._records[number], self._last = covered, number
            self._seen = self._seen.merged(looked if is_mine else covered)
            if is_mine:
                return

    # Results of landed shards.

    def landed(self, number: int) -> ShardResult:
        """Return the results of a loaded shard."""
        if number not in self._landed:
            self._landed[number] = read_landed(self.folder, number)
        return self._landed[number]

    def all_landed(self, shards: Iterable[PlannedShard]) -> dict[int, ShardResult]:
        """Return the results of these loaded shards by number."""
        numbers = [shard.number for shard in shards]
        return dict(zip(numbers, at_once(self.landed, numbers), strict=True))

    def note_landed(self, number: int, landed: ShardResult) -> None:
        """Remember the results that this worker has stored."""
        self._landed[number] = landed

    def spent(self, numbers: Sequence[int]) -> float:
        """Return the dollars that the answers of these loaded shards have cost."""
        listed = {number: seen.cost for number, seen in self._seen.shards.items() if seen.cost is not None}
        unlisted = [number for number in numbers if number not in listed]
        costs = at_once(lambda number: self.landed(number).report.spent.cost, unlisted)
        return math.fsum([*costs, *(listed[number] for number in numbers if number in listed)])

    def _cost(self, number: int) -> float | None:
        return self.landed(number).report.spent.cost if self.standing(number).staged is not None else None


def read_standings(folder: RunFolder, plan: Plan) -> list[tuple[PlannedShard, Standing]]:
    """Return every shard of a round, and where its journal says now that it stands."""
    return RunMemory.of(folder, plan).fresh_standings(plan)
