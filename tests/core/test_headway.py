"""The progress of batches, in words."""

from airflow_batch_llm.core.model import BatchState, BatchStatus
from airflow_batch_llm.core.waiting import WaitProgress


def test_a_batch_that_has_ended_counts_on_when_it_is_no_longer_looked_at() -> None:
    headway = WaitProgress()
    running = BatchStatus(state=BatchState.RUNNING, total=1000, finished=100)
    headway.add({"a": running, "b": running})
    assert str(headway) == "0 of 2 batches have ended, 200 of 2,000 requests are done"

    headway.add({"a": BatchStatus(state=BatchState.ENDED, total=1000)})
    headway.add({"b": BatchStatus(state=BatchState.RUNNING, total=1000, finished=400)})
    assert str(headway) == "1 of 2 batches have ended, 1,400 of 2,000 requests are done"


def test_where_the_provider_tells_no_numbers_batches_are_counted_alone() -> None:
    headway = WaitProgress()
    headway.add({"a": BatchStatus(state=BatchState.REJECTED), "b": BatchStatus(state=BatchState.RUNNING)})
    assert str(headway) == "1 of 2 batches have ended"


def test_before_the_first_look_batches_are_taken_to_run_and_the_next_look_has_a_time() -> None:
    headway = WaitProgress.of(["a", "b"])
    at_midnight = 1_795_910_400.0
    assert headway.until(at_midnight, 90) == (
        "0 of 2 batches have ended; looked at again in 90 s, at 00:01:30 UTC."
    )


def test_while_nothing_is_at_the_provider_it_says_so() -> None:
    assert str(WaitProgress()) == "No batch is running"
