"""A table of the rows that are asked again."""

import pytest

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.selection import Consequence, after_failure, after_rejection


@pytest.mark.parametrize(
    ("outcome", "retryable", "attempts", "tries", "verdict"),
    [
        (Outcome.INVALID, False, 0, 1, (1, False, True)),
        (Outcome.INVALID, False, 1, 2, (2, False, True)),
        (Outcome.INVALID, False, 2, 1, (3, True, False)),
        (Outcome.INVALID, False, 7, 1, (8, True, False)),
        (Outcome.INVALID, False, 0, 3, (1, False, False)),
        (Outcome.TRUNCATED, False, 0, 1, (1, False, True)),
        (Outcome.REFUSED, False, 0, 1, (1, True, False)),
        (Outcome.REFUSED, True, 0, 1, (1, True, False)),
        (Outcome.ERRORED, True, 0, 1, (1, False, True)),
        (Outcome.ERRORED, True, 2, 1, (3, True, False)),
        (Outcome.ERRORED, False, 0, 1, (1, False, False)),
        (Outcome.ERRORED, False, 2, 1, (3, True, False)),
        (Outcome.EXPIRED, False, 0, 1, (0, False, True)),
        (Outcome.EXPIRED, False, 0, 3, (0, False, False)),
        (Outcome.MISSING, False, 0, 1, (0, False, True)),
        (Outcome.CANCELED, False, 0, 1, (0, False, False)),
    ],
)
def test_a_failure_has_a_verdict(
    outcome: Outcome, retryable: bool, attempts: int, tries: int, verdict: tuple[int, bool, bool]
) -> None:
    counted, dead, again = verdict

    assert after_failure(outcome, retryable=retryable, attempts=attempts, tries=tries, most=3) == Consequence(
        attempts=counted, dead=dead, again=again
    )


def test_a_row_is_not_to_blame_for_a_shard_that_was_turned_away() -> None:
    assert after_rejection(2) == Consequence(attempts=2, dead=False, again=False)
