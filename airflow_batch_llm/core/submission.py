"""Bring one shard to a provider in one attempt: a machine of small steps, each one read or one write.

`advance` is pure: it takes the answer to the last action and says the next one. The worker performs actions for real;
the tests perform them against a model of a provider, in every order in which attempts can meet, crash, freeze and lose
answers. The protocol rests on two rules. An attempt sends only if its own intent is the last record. It cancels its own
batch only if it sees *another* batch recorded.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import assert_never

from airflow_batch_llm.core.journal import (
    Adopt,
    Ask,
    Done,
    Entry,
    GiveUp,
    Land,
    Look,
    Move,
    RecordKind,
    Refuse,
    Searched,
    Standing,
    Submit,
    Terms,
    Wait,
    decide,
    stand,
)


class Phase(StrEnum):
    """The event that an attempt waits for."""

    READING = "reading"  # the journal, to decide
    SEARCHING = "searching"  # the provider's answer to a search
    UPLOADING = "uploading"  # the input file's reference
    INTENDING = "intending"  # whether the intent was created
    CONFIRMING = "confirming"  # the journal, to see that the intent is its last record
    SENDING = "sending"  # the provider's answer to the creation
    RECORDING = "recording"  # whether the batch or the refusal was recorded
    REREADING = "rereading"  # the journal, to find the next free number or another's batch
    CANCELLING = "cancelling"  # the end of a batch that another attempt's made superfluous
    OVER = "over"


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Read the journal to its end. Answer: a tuple of entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Find:
    """Search the provider for the shard's batch. Answer: `Searched`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Put the shard where the provider reads it. Answer: the upload's reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """Create this record at this number. Answer: whether this very record is there."""

    number: int
    entry: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Create the batch, before `expires_at`. Answer: `Created`, `NotCreated` or `Unknown`."""

    upload: str
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelOwn:
    """Cancel this batch. Answer: anything."""

    batch_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The attempt has nothing more to do here; the move says what the shard waits for."""

    move: Move


Action = Read | Find | Upload | Append | Send | CancelOwn | Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    batch_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCreated:
    """No batch was created. `final`: the provider will never take the shard."""

    reason: str
    final: bool
    retry_after: float = 0.0
    detail: str = ""  # the vendor's words


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """The creation was sent and its answer was lost."""


Answer = tuple[Entry, ...] | Searched | str | bool | Created | NotCreated | Unknown | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One process's try at one shard. `name` is unique among all attempts ever made."""

    name: str
    phase: Phase = Phase.READING
    records: int = 0  # how many records this attempt has tried to create: makes its nonces
    standing: Standing = field(default_factory=Standing)
    upload: str = ""
    intent: Entry | None = None
    word: Entry | None = None  # what is to be recorded: a batch or a refusal


def begin(name: str) -> tuple[Attempt, Action]:
    """Return a new attempt and its first action."""
    return Attempt(name=name), Read()


def advance(attempt: Attempt, answer: Answer, terms: Terms, now: float) -> tuple[Attempt, Action]:
    """Take the answer to the last action, and return the next one."""
    match attempt.phase:
        case Phase.READING:
            assert isinstance(answer, tuple)
            return _choose(replace(attempt, standing=stand(answer)), None, terms, now)
        case Phase.SEARCHING:
            assert isinstance(answer, Searched)
            return _choose(attempt, answer, terms, now)
        case Phase.UPLOADING:
            assert isinstance(answer, str)
            return _intend(replace(attempt, upload=answer), terms, now)
        case Phase.INTENDING:
            if answer is not True:
                return _again(attempt)
            return replace(attempt, phase=Phase.CONFIRMING), Read()
        case Phase.CONFIRMING:
            assert isinstance(answer, tuple)
            return _send(replace(attempt, standing=stand(answer)), now)
        case Phase.SENDING:
            return _hear(attempt, answer, now)
        case Phase.RECORDING:
            return replace(attempt, phase=Phase.REREADING), Read()
        case Phase.REREADING:
            assert isinstance(answer, tuple)
            return _settle(replace(attempt, standing=stand(answer)), answer, terms, now)
        case Phase.CANCELLING:
            return _again(attempt)
        case Phase.OVER:
            raise AssertionError("this attempt is over")


def _again(attempt: Attempt) -> tuple[Attempt, Action]:
    return replace(attempt, phase=Phase.READING, intent=None, word=None), Read()


def _choose(attempt: Attempt, searched: Searched | None, terms: Terms, now: float) -> tuple[Attempt, Action]:
    move = decide(attempt.standing, terms, now, searched)
    match move:
        case Look():
            return replace(attempt, phase=Phase.SEARCHING), Find()
        case Submit() if attempt.upload:
            return _intend(attempt, terms, now)
        case Submit():
            return replace(attempt, phase=Phase.UPLOADING), Upload()
        case Adopt(batch_id=batch_id, upload=upload, intent=intent):
            word = _word(attempt, RecordKind.SUBMITTED, now)
            return _record(attempt, replace(word, intent=intent, upload=upload, batch_id=batch_id))
        case Wait() | Land() | Done() | Refuse() | GiveUp() | Ask():  # real time is asked by the asker
            return replace(attempt, phase=Phase.OVER), Stop(move=move)
        case _:
            assert_never(move)


def _intend(attempt: Attempt, terms: Terms, now: float) -> tuple[Attempt, Action]:
    intent = replace(
        _word(attempt, RecordKind.INTENT, now),
        upload=attempt.upload,
        expires_at=now + terms.lease_seconds,
    )
    after = replace(attempt, phase=Phase.INTENDING, intent=intent, records=attempt.records + 1)
    return after, Append(number=attempt.standing.last + 1, entry=intent)


def _send(attempt: Attempt, now: float) -> tuple[Attempt, Action]:
    """Send only while the attempt's own intent is the last record, and inside its lease."""
    intent, standing = attempt.intent, attempt.standing
    assert intent is not None
    mine = standing.intent is not None and standing.intent.nonce == intent.nonce
    if not mine or standing.batch is not None:
        return _again(attempt)
    if now >= intent.expires_at:
        return _record(
            attempt,
            replace(
                _word(attempt, RecordKind.RELEASED, now),
                reason="the lease ran out before sending",
            ),
        )
    return replace(attempt, phase=Phase.SENDING), Send(upload=attempt.upload, expires_at=intent.expires_at)


def _hear(attempt: Attempt, answer: Answer, now: float) -> tuple[Attempt, Action]:
    match answer:
        case Created(batch_id=batch_id):
            word = _word(attempt, RecordKind.SUBMITTED, now)
            return _record(attempt, replace(word, upload=attempt.upload, batch_id=batch_id))
        case NotCreated(reason=reason, final=final, retry_after=retry_after, detail=detail):
            word = _word(attempt, RecordKind.REFUSED if final else RecordKind.RELEASED, now)
            word = replace(word, reason=reason, detail=detail, not_before=now + retry_after)
            return _record(attempt, word)
        case _:
            return _again(attempt)  # the intent stands without an answer: that leads to a search


def _record(attempt: Attempt, word: Entry) -> tuple[Attempt, Action]:
    after = replace(attempt, phase=Phase.RECORDING, word=word, records=attempt.records + 1)
    return after, Append(number=attempt.standing.last + 1, entry=word)


def _settle(attempt: Attempt, entries: tuple[Entry, ...], terms: Terms, now: float) -> tuple[Attempt, Action]:
    """Check the journal after a record: go on if it is there, cancel an own spare batch, or record at a later number."""
    word, standing = attempt.word, attempt.standing
    assert word is not None
    held = word.batch_id if word.kind is RecordKind.SUBMITTED else ""
    recorded = any(
        entry.nonce == word.nonce or (held and entry.batch_id == held and entry.kind is RecordKind.SUBMITTED)
        for entry in entries
    )
    if not recorded:
        return _record(attempt, word)
    if held in standing.spare:
        return replace(attempt, phase=Phase.CANCELLING), CancelOwn(batch_id=held)
    return _choose(replace(attempt, intent=None, word=None), None, terms, now)


def _word(attempt: Attempt, kind: RecordKind, now: float) -> Entry:
    """Return a new record of this attempt, about its intent if it has one."""
    intent = attempt.intent.nonce if attempt.intent is not None else ""
    return Entry(kind=kind, nonce=f"{attempt.name}.{attempt.records}", at=now, intent=intent)
