"""Filling shards: how a stream of requests is cut into provider batches, never over a limit."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from airflow_batch_llm.core.model import Limits

Item = TypeVar("Item")

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


def cut(
    items: Iterable[Item], size: Callable[[Item], int], bounds: Bounds, seed: int
) -> Iterator[tuple[int, Item]]:
    """Each request in turn with the number, from 1, of its shard. `size` gives the bytes of its line with its end.

    A request that is larger than a shard may be is the caller's to refuse beforehand.
    """
    number, count, filled = 1, 0, 0
    limit = bounds.varied(seed)
    for item in items:
        more = size(item)
        if count and (count >= limit.requests or filled + more > limit.bytes):
            number, count, filled = number + 1, 0, 0
            limit = bounds.varied(seed + number * 7919)
        count += 1
        filled += more
        yield number, item
