from collections.abc import Sequence

import pytest

from airflow_batch_llm.core.model import BatchState, BatchStatus
from airflow_batch_llm.errors import Refused
from airflow_batch_llm.providers.steps import Ask, Calls, Lookup, Page, drive, look_up

RUNNING = BatchStatus(state=BatchState.RUNNING)


class Provider:
    """A list of batches, newest first, and how often it was asked for what."""

    def __init__(self, listed: Sequence[str], *, page_size: int, unlisted: Sequence[str] = ()) -> None:
        self.listed = list(listed)
        self.known = {*listed, *unlisted}
        self.page_size = page_size
        self.pages = 0
        self.singles = 0

    def page(self, after: str | None) -> Calls[Page]:
        yield Ask(lambda client: None)
        self.pages += 1
        begin = 0 if after is None else self.listed.index(after) + 1
        names = self.listed[begin : begin + self.page_size]
        more = begin + self.page_size < len(self.listed)
        return Page(statuses=dict.fromkeys(names, RUNNING), after=names[-1] if more else None)

    def one(self, batch_id: str) -> Calls[BatchStatus]:
        yield Ask(lambda client: None)
        self.singles += 1
        if batch_id not in self.known:
            raise Refused(f"no batch {batch_id}")
        return RUNNING

    def check(self, batch_ids: Sequence[str]) -> dict[str, BatchStatus]:
        return drive(look_up(batch_ids, Lookup(page=self.page, one=self.one)), None)


def ids(begin: int, end: int) -> list[str]:
    return [f"b{n}" for n in range(begin, end)]


@pytest.mark.parametrize(
    ("asked", "listed", "page_size", "pages", "singles"),
    [
        ([], ids(0, 5), 100, 0, 0),
        (ids(0, 1), ids(0, 5), 100, 0, 1),  # one call either way, and the smaller answer
        (ids(0, 2), ids(0, 5), 100, 1, 0),
        (ids(0, 500), ids(0, 500), 1000, 1, 0),
        (ids(0, 500), ids(0, 500), 100, 5, 0),
        (ids(900, 902), ids(0, 1000), 100, 1, 2),  # far back among others: not worth more pages
        (ids(900, 1000), ids(0, 1000), 100, 10, 0),
        (ids(0, 5) + ids(90, 91), ids(0, 5), 100, 1, 1),  # the list lags behind
        (["b1", "b1", "b2"], ids(0, 5), 100, 1, 0),
    ],
)
def test_pages_are_asked_for_while_they_are_fewer_calls_than_one_each(
    asked: list[str], listed: list[str], page_size: int, pages: int, singles: int
) -> None:
    provider = Provider(listed, page_size=page_size, unlisted=asked)
    assert set(provider.check(asked)) == set(asked)
    assert (provider.pages, provider.singles) == (pages, singles)


def test_batches_far_back_among_those_of_others_cost_at_most_a_tenth_more_than_one_call_each() -> None:
    provider = Provider(ids(0, 100_000), page_size=100)
    provider.check(ids(99_500, 100_000))
    assert provider.pages <= 50
    assert provider.singles == 500


def test_a_batch_that_cannot_be_looked_at_is_an_error() -> None:
    with pytest.raises(Refused, match="nobody"):
        Provider(ids(0, 3), page_size=100).check(["b1", "nobody"])
