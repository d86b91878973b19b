"""While an SDK is imported for an event loop, nothing is collected; afterwards all is as it was."""

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from airflow_batch_llm.providers import clients
from airflow_batch_llm.providers.clients import gc_paused


class Ring:
    """Garbage that only the collector can find."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    gc.unfreeze()  # what the session has frozen, too
    clients._frozen_by_others.clear()
    yield
    gc.freeze()
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
    assert clients._frozen_by_others.is_set()  # so that each next client need not count them


def test_an_error_in_the_block_does_not_leave_the_collector_off() -> None:
    with pytest.raises(ImportError), gc_paused():
        raise ImportError
    assert gc.isenabled()


def test_a_task_imports_what_it_works_with_and_nothing_is_collected_meanwhile() -> None:
    program = """
import gc, sys
from airflow_batch_llm.operators.run import _import_stage
gc.set_threshold(700, 1, 1)
before = [one["collections"] for one in gc.get_stats()]
_import_stage()
print("airflow_batch_llm.stage.land.landing" in sys.modules, gc.get_stats()[2]["collections"] - before[2])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "True 0"
