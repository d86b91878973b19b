"""The state that a shard's records give, and the next move that follows from it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.core.journal import (
    CANDIDATE_PAUSE_SECONDS,
    CLOCK_SKEW_SECONDS,
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
    Submit,
    Terms,
    Wait,
    decide,
    stand,
)
from airflow_batch_llm.core.model import BatchState, Sighting, Way

TERMS = Terms(token="r1-0001", requests=10, lease_seconds=120.0, list_lag_seconds=60.0)
CLOSED = replace(TERMS, closed=True)
SETTLED = 100.0 + 120.0 + CLOCK_SKEW_SECONDS + 60.0


def entry(kind: RecordKind, nonce: str, **fields: str | float) -> Entry:
    return Entry(kind=kind, nonce=nonce, at=100.0, **fields)  # type: ignore[arg-type]


INTENT = entry(RecordKind.INTENT, "i1", expires_at=220.0, upload="file")
SECOND = entry(RecordKind.INTENT, "i2", expires_at=900.0, upload="file2")
SUBMITTED = entry(RecordKind.SUBMITTED, "s1", intent="i1", batch_id="b1")
OTHER = entry(RecordKind.SUBMITTED, "s2", intent="i2", batch_id="b2")
RELEASED = entry(RecordKind.RELEASED, "r1", intent="i1", not_before=500.0, reason="busy")
LATER = entry(RecordKind.RELEASED, "r2", batch_id="b1", not_before=500.0, reason="quota")
REFUSED = entry(RecordKind.REFUSED, "x1", intent="i1", reason="bad key")
REJECTED = entry(RecordKind.REFUSED, "x2", batch_id="b1", reason="bad file")
ENDED = entry(RecordKind.ENDED, "e1", batch_id="b1")
STAGED = entry(RecordKind.STAGED, "t1")


@pytest.mark.parametrize(
    ("entries", "now", "move"),
    [
        ([], 0.0, Submit()),
        ([INTENT], 100.0, Look()),
        ([INTENT], 1e9, Look()),
        ([INTENT, RELEASED], 499.0, Wait(until=500.0, reason="busy")),
        ([INTENT, RELEASED], 500.0, Submit()),
        ([INTENT, REFUSED], 0.0, Refuse(reason="bad key")),
        ([INTENT, SUBMITTED], 0.0, Wait(batch_id="b1")),
        ([INTENT, SECOND, SUBMITTED], 0.0, Wait(batch_id="b1")),
        ([INTENT, SECOND, RELEASED], 0.0, Look()),
        ([INTENT, SUBMITTED, LATER], 499.0, Wait(until=500.0, reason="quota")),
        ([INTENT, SUBMITTED, LATER], 500.0, Submit()),
        ([INTENT, SUBMITTED, REJECTED], 0.0, Refuse(reason="bad file")),
        ([INTENT, SECOND, OTHER, LATER], 0.0, Wait(batch_id="b2")),
        ([INTENT, SUBMITTED, ENDED], 0.0, Land(batch_id="b1")),
        ([INTENT, SUBMITTED, ENDED, STAGED], 0.0, Done()),
        ([INTENT, REFUSED, STAGED], 0.0, Done()),
        ([STAGED], 0.0, Done()),
    ],
)
def test_the_records_say_what_to_do_next(entries: list[Entry], now: float, move: Move) -> None:
    assert decide(stand(entries), TERMS, now) == move


@pytest.mark.parametrize(
    ("entries", "move"),
    [
        ([], GiveUp()),
        ([INTENT, RELEASED], GiveUp()),
        ([INTENT], Look()),
        ([INTENT, SUBMITTED], Wait(batch_id="b1")),
        ([INTENT, SUBMITTED, ENDED], Land(batch_id="b1")),
    ],
)
def test_after_the_deadline_nothing_new_is_sent_and_nothing_sent_is_forgotten(
    entries: list[Entry], move: Move
) -> None:
    assert decide(stand(entries), CLOSED, 1e9) == move


def sighting(
    token: str | None, requests: int | None = 10, state: BatchState = BatchState.RUNNING
) -> Sighting:
    return Sighting(batch_id="b9", state=state, token=token, requests=requests)


ADOPTED = Adopt(batch_id="b9", upload="file", intent="i1")


@pytest.mark.parametrize(
    ("at", "seen", "move"),
    [
        (SETTLED - 1, [], Wait(until=SETTLED, reason="the creation of r1-0001 may still be on its way")),
        (SETTLED, [], Submit()),
        (100.0, [sighting("r1-0001")], ADOPTED),
        (SETTLED, [sighting("r1-0001", state=BatchState.ENDED)], ADOPTED),
        (SETTLED, [sighting(None), sighting("r1-0001")], ADOPTED),
        (SETTLED, [sighting("r1-0002")], Submit()),
        (SETTLED, [sighting(None, requests=11)], Submit()),
    ],
)
def test_an_intent_without_an_answer_is_looked_up(at: float, seen: list[Sighting], move: Move) -> None:
    searched = Searched(at=at, sightings=tuple(seen))

    assert decide(stand([INTENT]), TERMS, at, searched) == move


@pytest.mark.parametrize("requests", [10, None])
def test_a_batch_that_may_be_ours_is_waited_for_however_long_it_takes(requests: int | None) -> None:
    searched = Searched(at=1e9, sightings=(sighting(None, requests),))

    move = decide(stand([INTENT]), TERMS, 1e9, searched)

    assert isinstance(move, Wait)
    assert move.until == 1e9 + CANDIDATE_PAUSE_SECONDS


def test_a_creation_that_surely_failed_is_not_repeated_after_the_deadline() -> None:
    searched = Searched(at=SETTLED, sightings=())

    assert decide(stand([INTENT]), CLOSED, SETTLED, searched) == GiveUp()


@pytest.mark.parametrize(
    ("entries", "batch", "spare", "loose"),
    [
        ([INTENT, SUBMITTED], "b1", (), False),
        ([INTENT, SECOND, OTHER], "b2", (), True),
        ([INTENT, SECOND, OTHER, SUBMITTED], "b2", ("b1",), True),
        ([INTENT, SECOND, SUBMITTED, OTHER], "b1", ("b2",), True),
        ([INTENT, SUBMITTED, SUBMITTED], "b1", (), False),
        ([INTENT, SECOND, SUBMITTED, OTHER, OTHER], "b1", ("b2",), True),
        ([INTENT, RELEASED, SECOND, OTHER], "b2", (), False),
    ],
)
def test_the_first_batch_recorded_is_the_shards_and_the_others_are_spare(
    entries: list[Entry], batch: str, spare: tuple[str, ...], loose: bool
) -> None:
    standing = stand(entries)

    assert standing.batch is not None
    assert (standing.batch.batch_id, standing.spare, standing.loose) == (batch, spare, loose)
    assert standing.last == len(entries)


@given(
    st.builds(
        Entry,
        kind=st.sampled_from(RecordKind),
        nonce=st.text(min_size=1),
        at=st.floats(1, 1e10),
        expires_at=st.floats(1, 1e10),
        batch_id=st.text(),
        reason=st.text(),
    )
)
def test_a_record_is_stored_and_read_as_it_was(record: Entry) -> None:
    assert Entry.from_json(record.to_json()) == record


NOW_TERMS = replace(TERMS, way=Way.NOW)


def _asking(**fields: Any) -> Entry:
    return Entry(
        **{
            "kind": RecordKind.ASKING,
            "nonce": "a.1",
            "intent": "a",
            "at": 100.0,
            "expires_at": 130.0,
            "at_risk": 120,
        }
        | fields
    )


def test_one_worker_asks_at_a_time_and_another_takes_over_once_the_lease_is_over() -> None:
    held = stand([_asking()])
    waiting = decide(held, NOW_TERMS, 130.0)
    assert isinstance(waiting, Wait)
    assert waiting.until == 130.0 + CLOCK_SKEW_SECONDS
    assert decide(held, NOW_TERMS, 130.0 + CLOCK_SKEW_SECONDS) == Ask()
    renewed = stand([_asking(), _asking(nonce="a.2", expires_at=160.0)])
    assert isinstance(decide(renewed, NOW_TERMS, 200.0), Wait)


def test_a_lease_that_is_given_back_is_free_at_once_or_when_it_says() -> None:
    given_back = Entry(kind=RecordKind.RELEASED, nonce="a.2", intent="a", at=101.0)
    assert decide(stand([_asking(), given_back]), NOW_TERMS, 102.0) == Ask()
    later = replace(given_back, not_before=200.0, reason="no answer")
    assert decide(stand([_asking(), later]), NOW_TERMS, 102.0) == Wait(until=200.0, reason="no answer")
    closed = replace(NOW_TERMS, closed=True)
    assert decide(stand([_asking(), later]), closed, 102.0) == Ask()  # to keep what was answered
    of_another = replace(given_back, intent="b")
    assert isinstance(decide(stand([_asking(), of_another]), NOW_TERMS, 102.0), Wait)


def test_what_may_have_been_paid_twice_adds_up_over_all_records() -> None:
    taken_over = _asking(nonce="b.1", intent="b", at=300.0, expires_at=330.0, twice=17)
    ended = Entry(kind=RecordKind.ENDED, nonce="b.2", at=310.0, batch_id="now-r1", twice=2)
    standing = stand([_asking(), taken_over, ended])
    assert standing.maybe_twice == 19
    assert decide(standing, NOW_TERMS, 320.0) == Land(batch_id="now-r1")
