"""The wishes of the waiting generator, which both drivers fulfil alike."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from airflow_batch_llm.core.model import BatchState, BatchStatus
from airflow_batch_llm.core.waiting import (
    CANCEL_GRACE_SECONDS,
    LAST_LOOK_SECONDS,
    MIN_WAKE_SECONDS,
    PATIENCE,
    Cancel,
    Check,
    Outage,
    Reply,
    Sleep,
    Tell,
    Wake,
    Watch,
    Wish,
    adrive,
    drive,
    interval,
    settled,
    waiting,
)
from airflow_batch_llm.errors import ProviderError, Unavailable

WATCH = Watch(batch_ids=("a", "b"), since=1000.0, deadline=100_000.0)


@dataclass
class Provider:
    """Batches that end at their time, and a clock that sleeping moves."""

    ends: Mapping[str, float]
    now: float = 1000.0
    broken_until: float = 0.0
    wishes: list[Wish] = field(default_factory=list)
    twins: tuple[str, ...] = ()

    def clock(self) -> float:
        return self.now

    def perform(self, wish: Wish) -> Reply:
        self.wishes.append(wish)
        match wish:
            case Check(batch_ids=batch_ids):
                if self.now < self.broken_until:
                    raise Unavailable("no answer")
                return {batch_id: self._status(batch_id) for batch_id in batch_ids}
            case Sleep(seconds=seconds):
                self.now += seconds
            case Cancel(batch_id=batch_id):
                if self.now < self.broken_until:
                    raise Unavailable("no answer")
                self.ends = {**self.ends, batch_id: self.now + 60}
        return None

    async def aperform(self, wish: Wish) -> Reply:
        return self.perform(wish)

    def _status(self, batch_id: str) -> BatchStatus:
        over = self.now >= self.ends[batch_id]
        return BatchStatus(state=BatchState.ENDED if over else BatchState.RUNNING, twins=self.twins)

    def told(self) -> list[Tell]:
        return [wish for wish in self.wishes if isinstance(wish, Tell)]

    def sleeps(self) -> list[float]:
        return [wish.seconds for wish in self.wishes if isinstance(wish, Sleep)]


def wait(provider: Provider, watch: Watch, jitter: Callable[[], float] = lambda: 0.5) -> Wake:
    return drive(waiting(watch, provider.clock, jitter), provider.perform)


NEVER = 1e12


@pytest.mark.parametrize(
    ("ends", "changes", "wake", "at"),
    [
        ({"a": 0, "b": 0}, {}, Wake.ALL_ENDED, 1000),
        ({"a": 0, "b": 0}, {"not_before": 1006.0}, Wake.ALL_ENDED, 1006),
        ({"a": 1500, "b": 5000}, {}, Wake.ALL_ENDED, 5000),
        ({"a": 1500, "b": NEVER}, {"shards_wait": True}, Wake.PLACE_FREE, 1500),
        ({"a": 0, "b": NEVER}, {"shards_wait": True}, Wake.PLACE_FREE, 1000 + MIN_WAKE_SECONDS),
        ({"a": NEVER, "b": NEVER}, {"wake_at": 4000.0}, Wake.TIME, 4000),
        ({"a": NEVER, "b": NEVER}, {"deadline": 4000.0}, Wake.DEADLINE, 4000),
        ({"a": 500, "b": 4100}, {"deadline": 4000.0, "cancel_at_deadline": True}, Wake.ALL_ENDED, 4060),
        ({}, {"batch_ids": (), "wake_at": 2000.0}, Wake.TIME, 2000),
    ],
)
def test_waiting_ends_when_there_is_something_to_look_at(
    ends: Mapping[str, float], changes: Mapping[str, object], wake: Wake, at: float
) -> None:
    provider = Provider(ends)

    assert wait(provider, replace(WATCH, **changes)) is wake  # type: ignore[arg-type]
    assert at <= provider.now <= at + 320


def test_batches_that_have_ended_are_not_looked_at_again() -> None:
    provider = Provider({"a": 1100, "b": 9000})

    wait(provider, WATCH)

    checks = [wish.batch_ids for wish in provider.wishes if isinstance(wish, Check)]
    assert checks[0] == ("a", "b")
    assert checks[-1] == ("b",)
    assert sorted(set(checks), key=checks.index) == [("a", "b"), ("b",)]


def test_young_batches_are_looked_at_often_and_old_ones_seldom() -> None:
    provider = Provider({"a": 30_000, "b": 30_000})

    wait(provider, WATCH)

    sleeps = provider.sleeps()
    assert sleeps[0] == pytest.approx(2.0)
    assert sleeps == sorted(sleeps)
    assert sleeps[-1] == pytest.approx(90.0)
    assert [interval(age) for age in (0, 20, 100, 1e6)] == [2.0, 2.0, 5.0, 90.0]


@pytest.mark.parametrize("age", [60.0, 1200.0, 3600.0, 40_000.0])
def test_an_end_is_seen_less_than_a_minute_late_on_average(age: float) -> None:
    dice = random.Random(0)
    late = []
    for _ in range(60):
        end = 1000.0 + age * dice.uniform(0.8, 1.2)
        provider = Provider({"a": end, "b": end})
        wait(provider, WATCH, dice.random)
        late.append(provider.now - end)

    assert sum(late) / len(late) < 60


def test_the_users_interval_counts_and_is_spread_a_little() -> None:
    low, high = Provider({"a": 1090, "b": 0}), Provider({"a": 1090, "b": 0})
    watch = replace(WATCH, poll_interval=10.0)

    wait(low, watch, lambda: 0.0)
    wait(high, watch, lambda: 1.0)

    assert low.sleeps() == pytest.approx([9.0] * 10)
    assert high.sleeps() == pytest.approx([11.0] * 9)


def test_a_provider_that_does_not_answer_is_asked_more_and_more_seldom() -> None:
    provider = Provider({"a": 0, "b": 0}, broken_until=1400.0)

    assert wait(provider, WATCH) is Wake.ALL_ENDED
    sleeps = provider.sleeps()
    assert sleeps == sorted(sleeps)
    assert len(sleeps) < 10


def test_an_outage_is_told_from_the_third_look_on_and_its_end_too() -> None:
    provider = Provider({"a": 0, "b": 0}, broken_until=1025.0)

    wait(provider, WATCH)

    messages = [tell.message for tell in provider.told()]
    assert messages[:2] == ["", ""]
    assert messages[2].startswith(
        "The provider could not be reached 3 times in a row, since 00:16:40 UTC (12 s): no answer"
    )
    assert messages[-1].startswith(
        "The provider answers again. It could not be reached 3 times in a row, from"
    )
    assert [tell.outage.looks for tell in provider.told()] == [1, 2, 3, 0]


def test_an_outage_goes_on_over_two_waits_and_wakes_somebody_once() -> None:
    provider = Provider({"a": 0, "b": 0}, broken_until=NEVER)
    watch = replace(WATCH, alerts=True, outage=Outage(looks=2, since=900.0))

    assert wait(provider, watch) is Wake.UNREACHABLE
    (told,) = provider.told()
    assert (told.outage.looks, told.outage.since) == (3, 900.0)

    provider.wishes.clear()
    wait(provider, replace(watch, outage=replace(told.outage, alerted=True)))
    assert len(provider.told()) == PATIENCE


@pytest.mark.parametrize("cancel", [True, False])
def test_the_deadline_ends_an_outage(cancel: bool) -> None:
    provider = Provider({"a": NEVER, "b": NEVER}, broken_until=NEVER)

    wake = wait(provider, replace(WATCH, deadline=1100.0, cancel_at_deadline=cancel))

    assert (wake, provider.now) == (Wake.DEADLINE, 1100.0)
    assert sum(isinstance(wish, Cancel) for wish in provider.wishes) == int(cancel)
    limits = [wish.within for wish in provider.wishes if isinstance(wish, Check)]
    assert limits[0] == 100.0
    assert limits[-1] == LAST_LOOK_SECONDS


@pytest.mark.parametrize(
    ("starts", "first_look"),
    [
        (1000.0, 1006.0),  # at once: the whole time to settle is left
        (1004.0, 1010.0),  # the deferral took four seconds: the time to settle begins after it
        (1030.0, 1060.0),  # the machine is slow: the worker gets as much time again as it was late
        (1500.0, 1566.0),  # very slow: the worker gets a minute more
        (9000.0, 1006.0),  # another triggerer begins again, much later: the worker has ended long ago
    ],
)
def test_a_task_is_woken_only_once_its_worker_has_had_time_to_end(starts: float, first_look: float) -> None:
    assert settled(replace(WATCH, not_before=1006.0), 6.0, starts).not_before == first_look
    assert settled(WATCH, 6.0, starts) == WATCH


def test_patience_ends_and_no_batch_is_cancelled_for_it() -> None:
    provider = Provider({"a": 0, "b": 0}, broken_until=NEVER)

    assert wait(provider, WATCH) is Wake.UNREACHABLE
    assert sum(isinstance(wish, Check) for wish in provider.wishes) == PATIENCE
    assert not any(isinstance(wish, Cancel) for wish in provider.wishes)


def test_at_the_deadline_open_batches_are_cancelled_once_and_given_time_to_end() -> None:
    provider = Provider({"a": NEVER, "b": 1500})
    watch = replace(WATCH, deadline=2000.0, cancel_at_deadline=True)

    assert wait(provider, watch) is Wake.ALL_ENDED
    assert [wish for wish in provider.wishes if isinstance(wish, Cancel)] == [
        Cancel(batch_id="a", within=LAST_LOOK_SECONDS)
    ]


def test_a_cancelled_batch_that_does_not_end_is_given_up_after_its_time() -> None:
    class Stubborn(Provider):
        def perform(self, wish: Wish) -> Reply:
            if isinstance(wish, Cancel):
                self.wishes.append(wish)
                return None
            return super().perform(wish)

    provider = Stubborn({"a": NEVER, "b": NEVER})

    assert wait(provider, replace(WATCH, deadline=2000.0, cancel_at_deadline=True)) is Wake.DEADLINE
    assert provider.now == pytest.approx(2000.0 + CANCEL_GRACE_SECONDS, abs=1)


@pytest.mark.parametrize("broken_until", [0.0, 1400.0, NEVER])
async def test_both_drivers_take_the_same_steps(broken_until: float) -> None:
    sync, trigger = (Provider({"a": 1300, "b": 2500}, broken_until=broken_until) for _ in range(2))
    watch = replace(WATCH, shards_wait=True, deadline=9000.0)

    woken = drive(waiting(watch, sync.clock, lambda: 0.3), sync.perform)
    awaited = await adrive(waiting(watch, trigger.clock, lambda: 0.3), trigger.aperform)

    assert woken is awaited
    assert sync.wishes == trigger.wishes


@pytest.mark.parametrize("errors", [(ValueError("a bug"),), (KeyError("a"),)])
def test_an_error_that_is_no_providers_is_not_waited_out(errors: Sequence[Exception]) -> None:
    def perform(wish: Wish) -> Reply:
        raise errors[0]

    assert not isinstance(errors[0], ProviderError)
    with pytest.raises(type(errors[0])):
        drive(waiting(WATCH, lambda: 0.0, lambda: 0.0), perform)


@pytest.mark.parametrize(
    ("strays", "wake"),
    [((), Wake.STRAY), (("b2",), Wake.ALL_ENDED), (None, Wake.ALL_ENDED)],
)
def test_somebody_is_woken_once_for_a_batch_that_runs_under_the_same_token(
    strays: tuple[str, ...] | None, wake: Wake
) -> None:
    provider = Provider(ends={"b1": 1100.0}, twins=("b2",))

    assert wait(provider, Watch(batch_ids=("b1",), since=1000.0, deadline=NEVER, strays=strays)) is wake
