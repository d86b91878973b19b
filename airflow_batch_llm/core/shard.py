"""Filling shards: how a stream of requests is cut into provider batches, never over a limit."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from airflow_batch_llm.core.model import Limits

#: Shards of one run differ in size by up to this share, so that a count tells them apart at the provider.
_SPREAD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How large the shards of a run may become."""

    requests: int
    bytes: int

    @classmethod
    def of(cls, limits: Limits, *, rows_per_batch: int) -> "Bounds":
        """The user's wish within the provider's limits."""
        return cls(
            requests=max(1, min(rows_per_batch, limits.max_requests)),
            bytes=limits.max_bytes,
        )

    def varied(self, seed: int) -> "Bounds":
        """The same bounds, a little lower, by a number that the seed decides."""
        room = int(self.requests * _SPREAD)
        return Bounds(requests=self.requests - (seed % (room + 1)), bytes=self.bytes)


class Cutter:
    """Cuts requests that come block by block. One that is larger than a shard may be is the caller's to refuse."""

    def __init__(self, bounds: Bounds, seed: int) -> None:
        self._bounds = bounds
        self._seed = seed
        self._limit = bounds.varied(seed)
        self._number, self._count, self._filled = 1, 0, 0

    def cut(self, sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Which of the next requests, from one to before another, go to the shard of which number, from 1.

        A size is the bytes of a request's line with its end.
        """
        ends = list(accumulate(sizes, initial=0))
        first = 0
        while first < len(sizes):
            end = self._end(ends, first)
            if end == first:
                self._next_shard()
                continue
            self._count += end - first
            self._filled += ends[end] - ends[first]
            yield self._number, first, end
            first = end

    def _end(self, ends: Sequence[int], first: int) -> int:
        """Before which request the shard is full, if it is filled from this one on."""
        room = self._limit.bytes - self._filled
        fitting = bisect_right(ends, ends[first] + room, lo=first) - 1
        end = min(fitting, first + self._limit.requests - self._count, len(ends) - 1)
        return end if self._count else max(end, first + 1)

    def _next_shard(self) -> None:
        self._number, self._count, self._filled = self._number + 1, 0, 0
        self._limit = self._bounds.varied(self._seed + self._number * 7919)
