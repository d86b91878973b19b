"""Filling shards: how a stream of requests is cut into provider batches, never over a limit."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
            bytes=limits.default_bytes,
        )

    def varied(self, seed: int) -> "Bounds":
        """The same bounds, a little lower, by a number that the seed decides."""
        room = int(self.requests * _SPREAD)
        return Bounds(requests=self.requests - (seed % (room + 1)), bytes=self.bytes)


def cut(sizes: Iterable[int], bounds: Bounds, seed: int) -> Iterator[int]:
    """The shard number, from 1, of each request in turn, given the bytes of its line with its line end.

    A request that is larger than a shard may be is the caller's to refuse beforehand.
    """
    number, count, filled = 1, 0, 0
    limit = bounds.varied(seed + number)
    for size in sizes:
        if count and (count >= limit.requests or filled + size > limit.bytes):
            number, count, filled = number + 1, 0, 0
            limit = bounds.varied(seed + number * 7919)
        count += 1
        filled += size
        yield number
