"""Fold the journal of one shard into its state, and decide the next step.

A journal is a series of numbered records, each created once and never changed. It holds all that is known about the
shard, so any process can go on from any point. `stand` folds the records into the shard's state, and `decide` turns
that into the next move. A lost reply never buys a second batch: an intent without a reply is looked up at the provider.
It is given up only when no creation can still arrive there.

A worker also records its looks, so that the next worker does not read all of it again. It lists a shard as *begun*
before it creates the first record of the shard's journal, and as *reopened* before it adds to the journal of a shard
that is staged. So a shard that is not listed has an empty journal, and the journal of a staged shard has not changed,
unless it was reopened. All else in a record of looks is only a help: a journal may have grown since, and a new record
can never replace one that exists. The looks of a run are numbered. Look N covers those after `below(N)` up to N, as in
a binary counter, so a reader needs a number of them that grows with the logarithm of the looks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any

import orjson

from airflow_batch_llm.core.model import Sighting, Way

#: Clocks of two workers may differ by this much.
CLOCK_SKEW_SECONDS = 60.0

#: Seconds for which a batch is left alone that may belong to the run, and cannot be recognised before it has ended.
CANDIDATE_PAUSE_SECONDS = 300.0


class RecordKind(StrEnum):
    """The kinds of record in a shard's journal."""

    INTENT = "intent"  # I am about to create the batch, and may do so until `expires_at`
    RELEASED = "released"  # that creation (or that batch) came to nothing, for certain
    REFUSED = "refused"  # the provider will not take this shard, ever
    SUBMITTED = "submitted"  # the batch exists
    ASKING = "asking"  # I ask the requests in real time, and may send them until `expires_at`
    ENDED = "ended"  # the batch has ended and its raw results are kept
    STAGED = "staged"  # its answers are staged in the warehouse


@dataclass(frozen=True, slots=True, kw_only=True)
class Doer:
    """The task instance of a worker, or the user of a command, that did something. Empty: not known."""

    host: str = ""
    """The name of the machine."""
    user: str = ""
    """The user of a command. Default: a task did it."""
    team: str = ""
    """The team that pays. Default: not known."""
    dag_id: str = ""
    task_id: str = ""
    run_id: str = ""
    map_index: int = -1
    """The index of a mapped task. Default: the task is not mapped."""
    try_number: int = 0
    conn_id: str = ""
    """The connection to the provider."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are known."""
        known = ((field, getattr(self, field.name)) for field in fields(self))
        return {field.name: value for field, value in known if value not in (field.default, None)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record. The nonce distinguishes it from an equal record of another process."""

    kind: RecordKind
    nonce: str
    at: float
    intent: str = ""  # the nonce of the intent that this record answers
    expires_at: float = 0.0  # of an intent and of asking: nothing is sent after this
    at_risk: int = 0  # of asking: the answers that are lost at most if the worker dies
    twice: int = 0  # the requests that may have been paid twice, since the record before
    not_before: float = 0.0  # of a release: the next intent may not come earlier
    upload: str = ""
    batch_id: str = ""
    unmentioned: str = ""  # of an end: the outcome of rows that its results omit; empty: they are missing
    reason: str = ""  # code and status
    detail: str = ""  # the vendor's words, without secrets
    by: Doer | None = None  # None: written by an earlier release

    def to_json(self) -> bytes:
        """Return the record as it is stored: fields that say nothing are left out."""
        record = asdict(self) | {"by": self.by.to_json() if self.by is not None else None}
        return orjson.dumps({name: value for name, value in record.items() if value})

    @classmethod
    def from_json(cls, data: bytes) -> "Entry":
        record = orjson.loads(data)
        by = Doer(**record["by"]) if "by" in record else None
        return cls(**{**record, "kind": RecordKind(record["kind"]), "by": by})


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The state of a shard after all its records."""

    last: int = 0  # the number of the last record
    intent: Entry | None = None  # a creation that nobody has answered yet
    batch: Entry | None = None  # the first batch recorded: it is the shard's batch
    spare: tuple[
        str, ...
    ] = ()  # other batches recorded, or recorded too late: bought by mistake, to be cancelled
    loose: bool = False  # an intent was given up without a definite answer: it may yet show up as a batch
    released: Entry | None = None
    refused: Entry | None = None
    ended: Entry | None = None
    staged: Entry | None = None
    asking: Entry | None = None  # the last lease of a worker that asks in real time, unless it gave it back
    maybe_twice: int = 0  # the requests that may have been paid twice: their answers were lost with a worker


def stand(entries: Sequence[Entry]) -> Standing:
    """Fold a journal, from its first record to its last."""
    standing = Standing()
    for entry in entries:
        twice = standing.maybe_twice + entry.twice
        standing = replace(_after(standing, entry), last=standing.last + 1, maybe_twice=twice)
    return standing


def _after(standing: Standing, entry: Entry) -> Standing:
    match entry.kind:
        case RecordKind.INTENT:
            return replace(
                standing,
                intent=entry,
                loose=standing.loose or standing.intent is not None,
            )
        case RecordKind.RELEASED | RecordKind.REFUSED:
            return _given_up(standing, entry)
        case RecordKind.SUBMITTED:
            return _held(standing, entry)
        case RecordKind.ASKING:
            return replace(standing, asking=entry)
        case RecordKind.ENDED:
            return replace(standing, ended=entry)
        case RecordKind.STAGED:
            return replace(standing, staged=entry)


def _given_up(standing: Standing, entry: Entry) -> Standing:
    refused = entry if entry.kind is RecordKind.REFUSED else standing.refused
    if entry.batch_id:  # the batch ran nothing; one that is not the shard's own changes nothing
        if standing.batch is None or standing.batch.batch_id != entry.batch_id:
            return standing
        return replace(standing, batch=None, released=entry, refused=refused)
    if standing.asking is not None and standing.asking.intent == entry.intent:
        return replace(standing, asking=None, released=entry)
    if standing.intent is None or standing.intent.nonce != entry.intent:
        return standing  # a late word about an intent that another has replaced
    return replace(standing, intent=None, released=entry, refused=refused)


def _held(standing: Standing, entry: Entry) -> Standing:
    answered = standing.intent is not None and standing.intent.nonce == entry.intent
    intent = None if answered else standing.intent
    if standing.batch is None and standing.staged is None:
        return replace(standing, batch=entry, intent=intent)
    own = standing.batch.batch_id if standing.batch is not None else ""
    if entry.batch_id in {own, *standing.spare}:
        return replace(standing, intent=intent)
    return replace(standing, spare=(*standing.spare, entry.batch_id), intent=intent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Create the batch: nothing of this shard is at the provider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Ask the requests in real time: no other worker does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Ask the provider whether the batch of the intent without a reply exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Record this batch: an earlier attempt created it."""

    batch_id: str
    upload: str
    intent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Wait until `until`, or until the batch has ended."""

    until: float | None = None
    batch_id: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Land:
    """The batch has ended and its results are kept: bring them into the warehouse."""

    batch_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The shard's answers are staged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The provider will not take this shard. Its rows are failures."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """Nothing of this shard is at the provider, and the run's time is over. Its rows were not sent."""


Move = Submit | Ask | Look | Adopt | Wait | Land | Done | Refuse | GiveUp


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The facts about the shard and the provider that a decision needs."""

    token: str
    requests: int
    lease_seconds: float
    list_lag_seconds: float
    closed: bool = False  # the run's time is over: nothing new is sent
    way: Way = Way.BATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """The result of a search, and the time it began."""

    at: float
    sightings: tuple[Sighting, ...]


def decide(standing: Standing, terms: Terms, now: float, searched: Searched | None = None) -> Move:
    """Return the next move for a shard."""
    if standing.staged is not None:
        return Done()
    if standing.ended is not None:
        return Land(batch_id=standing.ended.batch_id)
    if terms.way.in_real_time:
        return _asked(standing, terms, now)
    if standing.batch is not None:
        return Wait(batch_id=standing.batch.batch_id)
    if standing.refused is not None:
        return Refuse(reason=standing.refused.reason)
    if standing.intent is not None:
        return _unanswered(standing.intent, terms, now, searched)
    if terms.closed:
        return GiveUp()
    if standing.released is not None and standing.released.not_before > now:
        return Wait(until=standing.released.not_before, reason=standing.released.reason)
    return Submit()


def _asked(standing: Standing, terms: Terms, now: float) -> Move:
    """Return the next move for a shard that is asked in real time. Answers are kept even after the deadline."""
    if standing.asking is not None and now < standing.asking.expires_at + CLOCK_SKEW_SECONDS:
        return Wait(
            until=standing.asking.expires_at + CLOCK_SKEW_SECONDS,
            reason=f"another worker asks the requests of {terms.token}, or died while it did",
        )
    if standing.released is not None and standing.released.not_before > now and not terms.closed:
        return Wait(until=standing.released.not_before, reason=standing.released.reason)
    return Ask()


def _unanswered(intent: Entry, terms: Terms, now: float, searched: Searched | None) -> Move:
    if searched is None:
        return Look()
    for sighting in searched.sightings:
        if sighting.token == terms.token:
            return Adopt(batch_id=sighting.batch_id, upload=intent.upload, intent=intent.nonce)
    for sighting in searched.sightings:
        if sighting.token is None and sighting.requests in {None, terms.requests}:
            return Wait(
                until=now + CANDIDATE_PAUSE_SECONDS,
                reason=f"batch {sighting.batch_id} may be the one of {terms.token}; that shows once it has ended",
            )
    settled = intent.expires_at + CLOCK_SKEW_SECONDS + terms.list_lag_seconds
    if searched.at < settled:
        return Wait(
            until=settled,
            reason=f"the creation of {terms.token} may still be on its way",
        )
    return GiveUp() if terms.closed else Submit()


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
        """Return what both know. If both know a journal, the longer view counts."""
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
    """Return the first and the last number of each run of consecutive numbers."""
    ordered = sorted(numbers)
    gaps = [(left, right) for left, right in pairwise(ordered) if right > left + 1]
    starts = ordered[:1] + [right for _, right in gaps]
    ends = [left for left, _ in gaps] + ordered[-1:]
    return [[start, end] for start, end in zip(starts, ends, strict=True)]


def _numbers(ranges: Sequence[Sequence[int]]) -> frozenset[int]:
    return frozenset(number for start, end in ranges for number in range(start, end + 1))


def below(number: int) -> int:
    """Return the number of the last record that record `number` does not cover. Returns 0 if it covers all before it."""
    return number & (number - 1)


def find_last(exists: Callable[[int], bool], shown: int = 0) -> int:
    """Return the last number for which a record exists, where none is missing before it. Returns 0 if there is none.

    The search begins at `shown`, which a listing has shown. A listing may be late, so it only saves questions.
    """
    last, step = (shown if shown and exists(shown) else 0), 1
    while exists(last + step):
        last, step = last + step, 2 * step
    after = last + step
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
