"""Decide which rows are sent and why the others are not, and whether a row without a good answer is asked again.

The reasons depend on four yes-or-no facts about a row. So a column of rows is judged by a table of sixteen reasons
(`table`), each of which `select` decides.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.settings import Only


class Reason(StrEnum):
    """The reasons for which a row is planned (the first five), or is not planned."""

    NEW = "new"
    CHANGED = "changed"
    OUTDATED = "outdated"
    AGAIN = "again"  # everything was asked for, and this has an answer already
    RETRIED = "retried"  # it was dead, and dead rows are asked for
    ANSWERED = "answered"  # it has the answer that is asked for
    OLDER_SPEC = "older_spec"  # it has an answer to the same input by an older spec, which serves
    DEAD = "dead"  # refused, or out of attempts, and neither row nor spec has changed since
    REUSED = "reused"  # a table has the answer to its input under another key, which is copied
    LOST = "lost"  # the answer that was to be copied is gone: the next run asks
    IN_FLIGHT = "in_flight"  # another unfinished run on the target has bought it
    POSTPONED = "postponed"  # it is beyond `max_rows` or the budget
    STOPPED = "stopped"  # the canary has ended the run before it was sent
    UNSENDABLE = "unsendable"  # its prompt cannot be made, or is too large


def _is_sent(reason: Reason) -> bool:
    match reason:
        case Reason.NEW | Reason.CHANGED | Reason.OUTDATED | Reason.AGAIN | Reason.RETRIED:
            return True
        case Reason.ANSWERED | Reason.OLDER_SPEC | Reason.DEAD:
            return False
        case Reason.REUSED | Reason.LOST | Reason.IN_FLIGHT:
            return False
        case Reason.POSTPONED | Reason.STOPPED | Reason.UNSENDABLE:
            return False
        case _:
            assert_never(reason)


#: Rows with these reasons are bought.
SENT = frozenset(filter(_is_sent, Reason))

#: Rows with these reasons may get a copy of an answer. A user who asks for everything gets new answers.
REUSABLE = SENT - {Reason.AGAIN}

#: Rows with these reasons end with an outcome.
PLANNED = SENT | {Reason.UNSENDABLE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The facts about a row in the target and the failures table."""

    answered: bool  # the target has its key
    same_input: bool  # with the same input hash
    same_spec: bool  # with the same spec hash
    dead: bool  # the failures table has its key, with both hashes, as dead

    @classmethod
    def from_code(cls, code: int) -> "Seen":
        """Return the facts as the bits of a number: 1 answered, 2 same input, 4 same spec, 8 dead."""
        return cls(
            answered=bool(code & 1), same_input=bool(code & 2), same_spec=bool(code & 4), dead=bool(code & 8)
        )


def select(seen: Seen, only: Only, *, retry_dead: bool) -> Reason:
    """Return the reason why a row is sent or not."""
    if seen.dead and only is not Only.ALL and not retry_dead:
        return Reason.DEAD
    reason = _living(seen, only)
    return Reason.RETRIED if seen.dead and reason in SENT - {Reason.AGAIN} else reason


def _living(seen: Seen, only: Only) -> Reason:
    """Return the reason for a row that is not dead."""
    if not seen.answered:
        return Reason.NEW
    match only:
        case Only.ALL:
            return Reason.AGAIN
        case Only.NEW:
            return Reason.ANSWERED
        case Only.CHANGED:
            older = Reason.OLDER_SPEC
        case Only.OUTDATED:
            older = Reason.OUTDATED
        case _:
            assert_never(only)
    if not seen.same_input:
        return Reason.CHANGED
    return Reason.ANSWERED if seen.same_spec else older


def table(only: Only, *, retry_dead: bool) -> tuple[Reason, ...]:
    """Return the reason for each code of `Seen.from_code`."""
    return tuple(select(Seen.from_code(code), only, retry_dead=retry_dead) for code in range(16))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """The consequences of an outcome for its row."""

    counts: bool  # towards the attempts of the row
    again: bool  # the same request may succeed in another batch
    final: bool = False  # the row is dead at once


def _rule(outcome: Outcome, *, retryable: bool) -> _Rule:
    match outcome:
        case Outcome.INVALID | Outcome.TRUNCATED:
            return _Rule(counts=True, again=True)
        case Outcome.ERRORED:
            return _Rule(counts=True, again=retryable)
        case Outcome.REFUSED:
            return _Rule(counts=True, again=False, final=True)
        case Outcome.EXPIRED | Outcome.MISSING:
            return _Rule(counts=False, again=True)
        case Outcome.CANCELED | Outcome.SUCCEEDED:
            return _Rule(counts=False, again=False)
        case _:
            assert_never(outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consequence:
    """The result of one row's failure: it counts as an attempt, is asked again, or is dead."""

    attempts: int  # as the failures table will say
    dead: bool  # not sent again until its row or the spec changes
    again: bool  # sent again in this run


def after_failure(outcome: Outcome, *, retryable: bool, attempts: int, tries: int, most: int) -> Consequence:
    """Decide after a row's failure. `attempts` are those before it, `tries` those of this run with it, `most` bounds each."""
    rule = _rule(outcome, retryable=retryable)
    counted = attempts + rule.counts
    dead = rule.final or counted >= most
    return Consequence(attempts=counted, dead=dead, again=rule.again and not dead and tries < most)


def after_rejection(attempts: int) -> Consequence:
    """Decide for the rows of a shard that the provider did not take. That says nothing about any single row."""
    return Consequence(attempts=attempts, dead=False, again=False)
