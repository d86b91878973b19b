from collections.abc import Callable, Mapping, Sequence

import pytest

from airflow_batch_llm.core.model import BatchState, BatchStatus
from airflow_batch_llm.errors import Refused
from airflow_batch_llm.providers.anthropic import AnthropicProvider
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.openai import OpenAIProvider
from airflow_batch_llm.providers.routed import RoutedProvider
from airflow_batch_llm.providers.steps import (
    Calls,
    Each,
    Invoke,
    ListMemory,
    Lookup,
    Parts,
    StatusPage,
    drive,
    from_batches,
    look_up,
)

RUNNING = BatchStatus(state=BatchState.RUNNING)


class Provider:
    """A list of batches, newest first, and how often it was asked for what."""

    def __init__(
        self,
        listed: Sequence[str],
        *,
        page_size: int = 100,
        unlisted: Sequence[str] = (),
        tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.listed = list(listed)
        self.known = {*listed, *unlisted}
        self.page_size = page_size
        self.tokens = tokens
        self.by_name: set[str] | None = None if tokens is None else set()
        self.memory = ListMemory()
        self.pages = 0
        self.singles = 0

    def page(self, after: str | None) -> Calls[StatusPage]:
        yield Invoke(lambda client: None)
        self.pages += 1
        if after is not None and self.listed and after not in self.listed:
            unknown = Refused(f"no batch {after}")
            unknown.status = 404
            raise unknown
        begin = 0 if after not in self.listed else self.listed.index(after) + 1
        names = self.listed[begin : begin + self.page_size]
        more = begin + self.page_size < len(self.listed)
        if not self.listed:
            refused = Refused("no such path")
            refused.status = 404
            raise refused
        return StatusPage(
            statuses=dict.fromkeys(names, RUNNING),
            after=names[-1] if more else None,
            tokens={name: token for name, token in (self.tokens or {}).items() if name in names},
            created={name: created_at(name) for name in names},
        )

    def one(self, batch_id: str) -> Calls[BatchStatus]:
        yield Invoke(lambda client: None)
        self.singles += 1
        if batch_id not in self.known:
            raise Refused(f"no batch {batch_id}")
        return RUNNING

    def check(self, batch_ids: Sequence[str]) -> dict[str, BatchStatus]:
        return drive(look_up(batch_ids, Lookup(page=self.page, one=self.one, by_name=self.by_name)), None)

    def check_in_parts(self, batch_ids: Sequence[str]) -> int:
        """Look at these batches. Returns how often calls were made side by side."""
        parts = Parts(size=self.page_size, memory=self.memory, between=from_batches(self.page))
        side_by_side = Counted()
        lookup = Lookup(page=self.page, one=self.one, parts=parts)
        assert drive(side_by_side.of(look_up(batch_ids, lookup)), None) == dict.fromkeys(batch_ids, RUNNING)
        return side_by_side.steps


class Counted:
    """Counts the steps of a flow that are made side by side."""

    def __init__(self) -> None:
        self.steps = 0

    def of(self, flow: Calls[dict[str, BatchStatus]]) -> Calls[dict[str, BatchStatus]]:
        reply = None
        while True:
            try:
                step = flow.send(reply)
            except StopIteration as end:
                found: dict[str, BatchStatus] = end.value
                return found
            self.steps += isinstance(step, Each)
            reply = yield step


def created_at(batch_id: str) -> float:
    return 100_000.0 - int(batch_id[1:])


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


@pytest.mark.parametrize("asked", [["b1"], ["b1", "b2"]])
def test_a_list_shows_which_batches_run_under_the_token_of_one_that_is_asked_for(asked: list[str]) -> None:
    tokens = {"b0": "r1-0001", "b1": "r1-0001", "b2": "r1-0002", "b3": "r2-0001"}  # b4 is being cancelled
    provider = Provider(ids(0, 5), tokens=tokens)

    found = provider.check(asked)

    assert found["b1"].twins == ("b0",)
    assert all(found[batch_id].twins == () for batch_id in asked[1:])
    assert (provider.pages, provider.singles) == (1, 0)


@pytest.mark.parametrize(
    ("listed", "page_size"),
    [(ids(0, 5), 2), ([], 2)],  # far back among others; a server without a list
)
def test_a_batch_that_the_first_page_does_not_show_is_asked_for_by_name_from_then_on(
    listed: list[str], page_size: int
) -> None:
    provider = Provider(listed, page_size=page_size, unlisted=["b4"], tokens={})

    for _ in range(3):
        assert provider.check(["b4"]) == {"b4": RUNNING}

    assert (provider.pages, provider.singles) == (1, 3)


def test_a_list_that_lags_behind_is_asked_again() -> None:
    provider = Provider(ids(0, 2), unlisted=["b4"], tokens={})

    for _ in range(3):
        provider.check(["b4"])

    assert (provider.pages, provider.singles) == (3, 3)


@pytest.mark.parametrize(
    ("about", "rounds", "calls"),
    [
        (lambda batch_id: created_at(batch_id), 1, 12),
        (
            lambda batch_id: created_at(batch_id) + int(batch_id[1:]) * 7 % 30,
            2,
            15,
        ),  # other clocks, and delays
        (lambda batch_id: -created_at(batch_id), 11, 60),  # far from true
    ],
)
def test_a_list_is_read_in_parts_side_by_side_as_far_as_the_times_of_creation_are_known(
    about: Callable[[str], float], rounds: int, calls: int
) -> None:
    provider = Provider(ids(0, 1000))
    provider.memory.note({batch_id: about(batch_id) for batch_id in provider.listed})

    assert provider.check_in_parts(provider.listed) <= rounds
    assert provider.pages + provider.singles <= calls

    # The first look has shown the times.
    before = provider.pages
    assert provider.check_in_parts(provider.listed) == 1
    assert (provider.pages - before, provider.singles) == (12, provider.singles)


def test_batches_of_others_among_ours_make_parts_longer_only_until_a_look_has_shown_them() -> None:
    provider = Provider(ids(0, 2000))
    ours = ids(0, 2000)[::2]
    provider.memory.note({batch_id: created_at(batch_id) for batch_id in ours})

    assert provider.check_in_parts(ours) <= 3
    before = provider.pages
    assert provider.check_in_parts(ours) == 1
    assert provider.pages - before == 23


def test_any_number_of_newer_batches_of_others_costs_two_calls() -> None:
    provider = Provider(ids(0, 5000))
    ours = ids(4000, 5000)
    provider.memory.note({batch_id: created_at(batch_id) for batch_id in ours})

    assert provider.check_in_parts(ours) == 2
    assert (provider.pages, provider.singles) == (12, 1)


def test_new_batches_and_deleted_ones_keep_no_batch_from_being_found() -> None:
    provider = Provider(ids(100, 1100))
    provider.check_in_parts(provider.listed)
    provider.listed = [*ids(0, 100), *ids(100, 1100)[1::2]]

    assert provider.check_in_parts(provider.listed) <= 12
    assert provider.pages + provider.singles <= 40


def test_an_outage_that_lasts_costs_the_calls_of_one_page() -> None:
    provider = Provider(ids(0, 1000))
    provider.memory.note({batch_id: created_at(batch_id) for batch_id in provider.listed})
    listed, provider.listed = provider.listed, []  # the server answers no page
    for pages in (12, 13, 14):
        with pytest.raises(Refused):
            provider.check_in_parts(listed)
        assert provider.pages == pages

    provider.listed = listed
    assert provider.check_in_parts(listed) == 1
    assert provider.pages == 14 + 13
    assert provider.check_in_parts(listed) == 1
    assert provider.pages == 14 + 13 + 12


def test_a_route_hears_when_its_own_batches_were_created() -> None:
    access = Access(api_key="any", base_url="http://127.0.0.1:1")
    own, other = AnthropicProvider(access), OpenAIProvider(access)

    RoutedProvider(own, {"cheap": other}).note_created({"b1": 1.0, "cheap|b2": 2.0})

    assert (own._memory.created, other._memory.created) == ({"b1": 1.0}, {"b2": 2.0})
