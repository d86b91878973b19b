"""The status of many batches in few calls: pages of the vendor's list while they pay, then one call each.

A page names many batches at the price of one call, but ours may lie far back among those of others. So at most a
tenth of what asking one by one would cost is spent on pages.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from airflow_batch_llm.core.model import BatchStatus
from airflow_batch_llm.providers.steps import Calls, Each


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a list, newest first. `after` leads to the next; None: this is the last."""

    statuses: Mapping[str, BatchStatus]
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """The two ways to look: a page of the list, or one batch."""

    page: Callable[[str | None], Calls[Page]]
    one: Callable[[str], Calls[BatchStatus]]


def look_up(batch_ids: Sequence[str], lookup: Lookup) -> Calls[dict[str, BatchStatus]]:
    """The status of each of these batches. Raises the first error that stood in the way of one."""
    found: dict[str, BatchStatus] = {}
    missing = list(dict.fromkeys(batch_ids))
    pages, after = 0, None
    while len(missing) > 1 and pages < max(1, len(missing) // 10):
        page = yield from lookup.page(after)
        pages, after = pages + 1, page.after
        found |= {batch_id: page.statuses[batch_id] for batch_id in missing if batch_id in page.statuses}
        missing = [batch_id for batch_id in missing if batch_id not in found]
        if after is None:
            break
    # What the list did not show is asked for by name: a list may lag behind a creation.
    replies = (yield Each([lookup.one(batch_id) for batch_id in missing])) if missing else []
    for batch_id, reply in zip(missing, replies, strict=True):
        if isinstance(reply, Exception):
            raise reply
        found[batch_id] = reply
    return found
