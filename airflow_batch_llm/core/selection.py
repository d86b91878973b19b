"""Which rows are sent, and why the others are not."""

from dataclasses import dataclass
from enum import StrEnum


class Only(StrEnum):
    """What a run asks about."""

    CHANGED = (
        "changed"  # rows that are new, or whose input differs from what was answered
    )
    OUTDATED = "outdated"  # these, and rows that an older spec has answered
    NEW = "new"  # rows whose key has no answer
    ALL = "all"


class Reason(StrEnum):
    """Why a row is planned (the first four), or why it is not."""

    NEW = "new"
    CHANGED = "changed"
    OUTDATED = "outdated"
    AGAIN = "again"  # everything was asked for, and this has an answer already
    ANSWERED = "answered"  # it has the answer that is asked for
    OLDER_SPEC = "older_spec"  # it has an answer to the same input by an older spec, which serves
    DEAD = "dead"  # refused, or out of attempts, and neither row nor spec has changed since
    IN_FLIGHT = "in_flight"  # another unfinished run on the target has bought it
    POSTPONED = "postponed"  # it is beyond `max_rows` or the budget
    UNSENDABLE = "unsendable"  # its prompt cannot be made, or is too large


#: Rows with these reasons are bought.
SENT = frozenset({Reason.NEW, Reason.CHANGED, Reason.OUTDATED, Reason.AGAIN})


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the target and the failures table hold for a row's key."""

    input_hash: str | None = None
    spec_hash: str | None = None
    failed_input_hash: str | None = None
    failed_spec_hash: str | None = None
    failed_dead: bool = False


def select(
    known: Known, input_hash: str, spec_hash: str, only: Only, *, retry_dead: bool
) -> Reason:
    """Why this row is sent, or is not."""
    if (
        only is not Only.ALL
        and _is_dead(known, input_hash, spec_hash)
        and not retry_dead
    ):
        return Reason.DEAD
    if known.input_hash is None:
        return Reason.NEW
    if only is Only.ALL:
        return Reason.AGAIN
    if only is Only.NEW:
        return Reason.ANSWERED
    if known.input_hash != input_hash:
        return Reason.CHANGED
    if known.spec_hash == spec_hash:
        return Reason.ANSWERED
    return Reason.OUTDATED if only is Only.OUTDATED else Reason.OLDER_SPEC


def _is_dead(known: Known, input_hash: str, spec_hash: str) -> bool:
    return known.failed_dead and (known.failed_input_hash, known.failed_spec_hash) == (
        input_hash,
        spec_hash,
    )
