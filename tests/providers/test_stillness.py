"""While an SDK is imported for an event loop, nothing is collected; afterwards all is as it was."""

import gc
from collections.abc import Iterator

import pytest

from airflow_batch_llm.providers.clients import gc_paused


class Ring:
    """Garbage that only the collector can find."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_nothing_is_collected_in_the_block_and_the_collector_goes_on_after_it() -> None:
    before = collections()
    with gc_paused():
        kept = [Ring() for _ in range(100_000)]
        assert collections() == before
    assert gc.isenabled()
    del kept
    assert gc.collect() >= 100_000


def test_what_the_block_made_is_not_among_the_young_objects() -> None:
    with gc_paused():
        kept = [Ring() for _ in range(100_000)]
        young = gc.get_count()[0]
    assert young >= len(kept)
    assert gc.get_count()[0] < 1_000


def test_a_collector_that_was_off_stays_off_and_frozen_objects_stay_frozen() -> None:
    gc.freeze()
    gc.disable()
    with gc_paused():
        pass
    assert not gc.isenabled()
    assert gc.get_freeze_count() > 0  # thawed, there are none; some of them may go by themselves


def test_an_error_in_the_block_does_not_leave_the_collector_off() -> None:
    with pytest.raises(ImportError), gc_paused():
        raise ImportError
    assert gc.isenabled()
