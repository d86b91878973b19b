"""No shard is over its limits; no request is lost or doubled."""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.core.model import Limits
from airflow_batch_llm.core.request import Cutter, ShardBounds

LIMITS = Limits(
    max_requests=1000,
    max_bytes=5_000,
    max_request_bytes=500,
    window_seconds=86_400.0,
)


def numbered(sizes: Sequence[int], bounds: ShardBounds, seed: int, block: int) -> Iterator[tuple[int, int]]:
    """Each request with the number of its shard; this many are cut at once."""
    cutter = Cutter(bounds, seed)
    for first in range(0, len(sizes), block):
        for number, start, end in cutter.cut(sizes[first : first + block]):
            yield from ((number, request) for request in range(first + start, first + end))


@given(
    sizes=st.lists(st.integers(1, 100), max_size=300),
    requests=st.integers(1, 400),
    room=st.integers(100, 2_000),
    seed=st.integers(0, 2**40),
    block=st.integers(1, 400),
)
def test_requests_of_any_sizes_fill_shards_within_their_bounds(
    sizes: list[int], requests: int, room: int, seed: int, block: int
) -> None:
    cut = list(numbered(sizes, ShardBounds(requests=requests, bytes=room), seed, block))

    assert [request for _, request in cut] == list(range(len(sizes)))
    shards = [[request for _, request in group] for _, group in groupby(cut, key=lambda pair: pair[0])]
    assert sorted({number for number, _ in cut}) == list(range(1, len(shards) + 1))
    for shard in shards:
        assert len(shard) <= requests
        assert sum(sizes[request] for request in shard) <= room
    least = requests - int(requests * 0.02)
    for shard, following in pairwise(shards):
        full = sum(sizes[request] for request in shard) + sizes[following[0]] > room
        assert full or len(shard) >= least


@pytest.mark.parametrize(
    ("rows_per_batch", "requests"), [(10, 10), (1000, 1000), (5000, 1000), (0, 1), (-3, 1)]
)
def test_the_users_wish_counts_within_the_providers_limits(rows_per_batch: int, requests: int) -> None:
    assert ShardBounds.of(LIMITS, rows_per_batch=rows_per_batch) == ShardBounds(
        requests=requests, bytes=5_000
    )


def test_shards_of_a_run_differ_in_size_so_that_a_count_tells_them_apart() -> None:
    cut = numbered([1] * 200_000, ShardBounds(requests=10_000, bytes=10**9), 12345, 1000)
    sizes = [len(list(group)) for _, group in groupby(cut, key=lambda pair: pair[0])][:-1]

    assert len(set(sizes)) > len(sizes) * 0.8
    assert min(sizes) >= 9_800
