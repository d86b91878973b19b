"""Whether a row without a good answer is asked again, and how its attempts are counted.

`attempts` stands in the failures table and outlives the run: it counts what the row itself may be to blame for.
`tries` counts within one run, whatever happened, so that rounds come to an end.
"""

from dataclasses import dataclass

from airflow_batch_llm.core.model import Outcome

#: Outcomes that say something about the row: they count towards its attempts.
_COUNTED = frozenset({Outcome.INVALID, Outcome.TRUNCATED, Outcome.REFUSED, Outcome.ERRORED})

#: Outcomes after which the same request may fare better.
_AGAIN = frozenset({Outcome.INVALID, Outcome.TRUNCATED, Outcome.EXPIRED, Outcome.MISSING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows from one row's failure."""

    attempts: int  # as the failures table will say
    dead: bool  # not sent again until its row or the spec changes
    again: bool  # sent again in this run


def after_failure(outcome: Outcome, *, retryable: bool, attempts: int, tries: int, most: int) -> Verdict:
    """`attempts` before this failure, `tries` in this run with this one, `most` allowed of each."""
    counted = attempts + (outcome in _COUNTED)
    hopeful = outcome in _AGAIN or (outcome is Outcome.ERRORED and retryable)
    dead = outcome is Outcome.REFUSED or counted >= most
    return Verdict(attempts=counted, dead=dead, again=hopeful and not dead and tries < most)


def after_rejection(attempts: int) -> Verdict:
    """The provider took none of the shard's rows, which says nothing about any of them."""
    return Verdict(attempts=attempts, dead=False, again=False)
