"""Pass each call of a run to the provider of its route.

A batch or an upload of a route's own connection has the connection's name before its id. So the id alone leads a
journal, a trigger or a search to the right vendor.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from airflow_batch_llm.core.model import (
    Answered,
    BatchStatus,
    Call,
    Lease,
    Limits,
    Result,
    Search,
    ShardFile,
    Sighting,
    Way,
)
from airflow_batch_llm.core.request import LineTemplate
from airflow_batch_llm.errors import InputError, Refused
from airflow_batch_llm.providers.base import AnswersNow, DeletesBatches, NotesCreations, Provider

_SEPARATOR = "|"


def routed(own: Provider, others: Mapping[str, Provider]) -> Provider:
    """Return one provider that passes calls to the stage's own provider and to those of its routes, by connection."""
    return RoutedProvider(own, others) if others else own


def by_route(provider: Provider, via: str) -> Provider:
    """Return the provider that the connection of a route leads to. "" is the stage's own."""
    if isinstance(provider, RoutedProvider):
        return provider.by(via)
    if via:
        raise InputError(f"No connection {via!r} is open for a route. Give the route's provider, too.")
    return provider


def connections(provider: Provider) -> frozenset[str]:
    """Return the names of the connections of routes that a provider knows."""
    return provider.names if isinstance(provider, RoutedProvider) else frozenset()


def vendors(provider: Provider) -> frozenset[str]:
    """Return the names of all vendors that a provider leads to."""
    return frozenset(by_route(provider, via).name for via in ("", *connections(provider)))


def vendors_id(provider: Provider, batch_id: str) -> tuple[str, str]:
    """Return the vendor's name and the vendor's own id of a batch of a run."""
    if not isinstance(provider, RoutedProvider):
        return provider.name, batch_id
    via, plain = provider.split(batch_id)
    return provider.by(via).name, plain


def _marked(via: str, batch_id: str) -> str:
    return f"{via}{_SEPARATOR}{batch_id}" if via and batch_id else batch_id


class RoutedProvider:
    """Passes each verb to the provider whose call, batch or upload it is about."""

    def __init__(self, own: Provider, others: Mapping[str, Provider]) -> None:
        self._all = {"": own, **others}

    @property
    def names(self) -> frozenset[str]:
        """The connections of routes."""
        return frozenset(self._all) - {""}

    def by(self, via: str) -> Provider:
        """Return the provider of a connection."""
        if via not in self._all:
            raise InputError(f"No connection {via!r} is open for a route. Give the route's provider, too.")
        return self._all[via]

    def split(self, batch_id: str) -> tuple[str, str]:
        """Return the name of the connection, and the vendor's own id."""
        via, separator, plain = batch_id.partition(_SEPARATOR)
        return (via, plain) if separator and via in self._all else ("", batch_id)

    @property
    def name(self) -> str:
        return self._all[""].name

    @property
    def limits(self) -> Limits:
        """The stage's own limits, with the longest window and lag of all."""
        limits = [provider.limits for provider in self._all.values()]
        return replace(
            limits[0],
            window_seconds=max(one.window_seconds for one in limits),
            list_lag_seconds=max(one.list_lag_seconds for one in limits),
        )

    @property
    def host(self) -> str | None:
        return self._all[""].host

    def encode(self, call: Call) -> LineTemplate:
        return self.by(call.via).encode(call)

    def decode(self, line: bytes) -> Result:
        """Read a line of the stage's own provider. For a route's lines, use the provider that `by_route` returns."""
        return self._all[""].decode(line)

    def upload(self, shard: ShardFile) -> str:
        return _marked(shard.call.via, self.by(shard.call.via).upload(shard))

    def submit(self, shard: ShardFile, upload: str, lease: Lease) -> str:
        via = shard.call.via
        return _marked(via, self.by(via).submit(shard, self.split(upload)[1], lease))

    def check(self, batch_ids: Sequence[str]) -> Mapping[str, BatchStatus]:
        seen: dict[str, BatchStatus] = {}
        for via, plain in self._apart(batch_ids):
            seen |= _marked_statuses(via, self._all[via].check(plain))
        return seen

    def cancel(self, batch_id: str) -> None:
        via, plain = self.split(batch_id)
        self._all[via].cancel(plain)

    def results(self, batch_id: str) -> Iterator[bytes]:
        via, plain = self.split(batch_id)
        return self._all[via].results(plain)

    def find(self, search: Search) -> Sequence[Sighting]:
        found: list[Sighting] = []
        for via, provider in self._all.items():
            found += [replace(one, batch_id=_marked(via, one.batch_id)) for one in provider.find(search)]
        return found

    def discard(self, upload: str) -> None:
        via, plain = self.split(upload)
        self._all[via].discard(plain)

    def count_tokens(self, call: Call, prompts: Sequence[str]) -> Sequence[int] | None:
        return self.by(call.via).count_tokens(call, prompts)

    def console_url(self, batch_id: str) -> str | None:
        via, plain = self.split(batch_id)
        return self._all[via].console_url(plain)

    def close(self) -> None:
        for provider in self._all.values():
            provider.close()

    async def acheck(self, batch_ids: Sequence[str]) -> Mapping[str, BatchStatus]:
        seen: dict[str, BatchStatus] = {}
        for via, plain in self._apart(batch_ids):
            seen |= _marked_statuses(via, await self._all[via].acheck(plain))
        return seen

    def note_created(self, about: Mapping[str, float]) -> None:
        for via, plain in self._apart(about):
            if isinstance(provider := self._all[via], NotesCreations):
                provider.note_created({batch_id: about[_marked(via, batch_id)] for batch_id in plain})

    async def acancel(self, batch_id: str) -> None:
        via, plain = self.split(batch_id)
        await self._all[via].acancel(plain)

    async def aclose(self) -> None:
        for provider in self._all.values():
            await provider.aclose()

    def delete_batch(self, batch_id: str, upload: str) -> None:
        via, plain = self.split(batch_id)
        provider = self._all[via]
        if not isinstance(provider, DeletesBatches):
            raise Refused(f"{provider.name} cannot delete batches.")
        provider.delete_batch(plain, self.split(upload)[1])

    def flex_problem(self, call: Call) -> str | None:
        return self._asked(call).flex_problem(call)

    async def answer(self, call: Call, line: bytes, way: Way) -> Answered:
        return await self._asked(call).answer(call, line, way)

    def _asked(self, call: Call) -> AnswersNow:
        provider = self.by(call.via)
        assert isinstance(provider, AnswersNow), (
            "planning has refused a route that cannot be asked in real time"
        )
        return provider

    def _apart(self, batch_ids: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Return the vendors' own ids, by connection."""
        apart: dict[str, list[str]] = {}
        for batch_id in batch_ids:
            via, plain = self.split(batch_id)
            apart.setdefault(via, []).append(plain)
        return ((via, tuple(plain)) for via, plain in apart.items())


def _marked_statuses(via: str, seen: Mapping[str, BatchStatus]) -> dict[str, BatchStatus]:
    return {
        _marked(via, batch_id): replace(status, twins=tuple(_marked(via, twin) for twin in status.twins))
        for batch_id, status in seen.items()
    }
