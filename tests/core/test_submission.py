"""One attempt at one shard, step by step."""

from collections.abc import Sequence

import pytest

from airflow_batch_llm.core.journal import Entry, RecordKind, Searched, Terms, Wait, stand
from airflow_batch_llm.core.model import BatchState, Sighting
from airflow_batch_llm.core.submission import (
    Action,
    Answer,
    Append,
    Attempt,
    CancelOwn,
    Created,
    Find,
    NotCreated,
    Read,
    Send,
    Stop,
    Unknown,
    Upload,
    advance,
    begin,
)

TERMS = Terms(token="r1-0001", requests=10, lease_seconds=120.0, list_lag_seconds=60.0)


class Talk:
    """An attempt that is answered by hand, and the journal that it writes."""

    def __init__(self, journal: Sequence[Entry] = ()) -> None:
        self.journal = list(journal)
        self.attempt: Attempt
        self.attempt, self.action = begin("me")

    def answer(self, answer: Answer, now: float = 0.0) -> Action:
        self.attempt, self.action = advance(self.attempt, answer, TERMS, now)
        return self.action

    def go(self, now: float = 0.0) -> Action:
        """Answer for the journal and the upload until something else is wanted."""
        while isinstance(self.action, Read | Append | Upload):
            match self.action:
                case Read():
                    self.answer(tuple(self.journal), now)
                case Append(number=number, entry=entry):
                    free = number == len(self.journal) + 1
                    if free:
                        self.journal.append(entry)
                    self.answer(free, now)
                case Upload():
                    self.answer("file", now)
        return self.action

    @property
    def kinds(self) -> list[RecordKind]:
        return [entry.kind for entry in self.journal]


def foreign(kind: RecordKind, **fields: str | float) -> Entry:
    return Entry(kind=kind, nonce=f"other.{kind}", at=0.0, **fields)  # type: ignore[arg-type]


def test_a_batch_is_created_between_its_intent_and_its_record() -> None:
    talk = Talk()

    assert talk.go() == Send(upload="file", expires_at=120.0)
    assert talk.kinds == [RecordKind.INTENT]
    talk.answer(Created(batch_id="b1"))
    assert talk.go() == Stop(move=Wait(batch_id="b1"))
    assert talk.kinds == [RecordKind.INTENT, RecordKind.SUBMITTED]
    assert talk.journal[1].intent == talk.journal[0].nonce


def test_nothing_is_sent_once_the_lease_is_over() -> None:
    talk = Talk()
    talk.answer(())
    talk.answer("file")
    assert isinstance(talk.action, Append)
    talk.journal.append(talk.action.entry)
    talk.answer(True)

    talk.answer(tuple(talk.journal), now=120.0)

    assert isinstance(talk.action, Append)
    assert talk.action.entry.kind is RecordKind.RELEASED


def test_nothing_is_sent_when_another_intent_came_in_between() -> None:
    talk = Talk()
    talk.answer(())
    talk.answer("file")
    assert isinstance(talk.action, Append)
    talk.journal += [talk.action.entry, foreign(RecordKind.INTENT, expires_at=500.0)]
    talk.answer(True)

    assert isinstance(talk.go(), Find)


def test_an_intent_that_another_was_faster_with_is_read_again() -> None:
    talk = Talk()
    talk.answer(())
    talk.answer("file")
    talk.journal.append(foreign(RecordKind.INTENT, expires_at=120.0))

    talk.answer(False)

    assert isinstance(talk.go(), Find)
    assert len(talk.journal) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "not_before"),
    [
        (NotCreated(reason="full", final=False, retry_after=30.0), RecordKind.RELEASED, 37.0),
        (NotCreated(reason="no", final=True), RecordKind.REFUSED, 7.0),
    ],
)
def test_a_definite_no_is_recorded(answer: NotCreated, kind: RecordKind, not_before: float) -> None:
    talk = Talk()
    talk.go(now=7.0)
    talk.answer(answer, now=7.0)
    talk.go(now=7.0)

    assert talk.kinds == [RecordKind.INTENT, kind]
    assert (talk.journal[1].reason, talk.journal[1].not_before) == (answer.reason, not_before)


def test_a_lost_answer_leads_to_a_search_and_what_it_finds_is_adopted() -> None:
    talk = Talk()
    talk.go()
    talk.answer(Unknown())
    assert isinstance(talk.go(), Find)
    mine = Sighting(batch_id="b1", state=BatchState.RUNNING, token="r1-0001", requests=10)

    talk.answer(Searched(at=0.0, sightings=(mine,)))

    assert talk.go() == Stop(move=Wait(batch_id="b1"))
    assert talk.journal[1].intent == talk.journal[0].nonce
    assert talk.journal[1].upload == "file"


def test_a_batch_is_recorded_at_a_later_number_if_its_place_is_taken() -> None:
    talk = Talk()
    talk.go()
    talk.journal.append(foreign(RecordKind.INTENT, expires_at=500.0))
    talk.answer(Created(batch_id="b1"))

    talk.go()

    assert talk.kinds == [RecordKind.INTENT, RecordKind.INTENT, RecordKind.SUBMITTED]


def test_only_he_who_sees_another_batch_recorded_cancels_his_own() -> None:
    talk = Talk()
    talk.go()
    talk.journal += [
        foreign(RecordKind.INTENT, expires_at=500.0),
        foreign(RecordKind.SUBMITTED, batch_id="b2"),
    ]
    talk.answer(Created(batch_id="b1"))

    assert talk.go() == CancelOwn(batch_id="b1")
    assert (
        talk.kinds[-1] is RecordKind.SUBMITTED
    )  # first, for whoever sweeps if this attempt dies before the cancelling
    talk.answer(None)
    assert talk.go() == Stop(move=Wait(batch_id="b2"))
    assert stand(talk.journal).spare == ("b1",)


def test_a_batch_that_another_has_recorded_for_us_is_not_cancelled() -> None:
    talk = Talk()
    talk.go()
    talk.journal.append(foreign(RecordKind.SUBMITTED, intent="me.0", batch_id="b1"))
    talk.answer(Created(batch_id="b1"))

    assert talk.go() == Stop(move=Wait(batch_id="b1"))
    assert talk.kinds == [RecordKind.INTENT, RecordKind.SUBMITTED]


def test_an_upload_is_used_for_every_creation_of_the_attempt() -> None:
    settled = foreign(RecordKind.INTENT, expires_at=-1000.0)
    talk = Talk([settled])
    talk.go()
    talk.answer(Searched(at=0.0, sightings=()))

    assert isinstance(talk.go(), Send)
    assert talk.kinds == [RecordKind.INTENT, RecordKind.INTENT]
