"""Look at batches: each verb is one generator, which workers and triggers both drive.

A batch has no name and no metadata, and its requests cannot be read back. The time of creation and the size of a
lost batch suggest whose it is. Only the custom_ids of its results prove it, once it has ended.

An SDK client is imported when it is opened. The creation of a batch is streamed.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from airflow_batch_llm.core.model import BatchState, BatchStatus, Call, Search, Sighting
from airflow_batch_llm.errors import InputError, Refused, ResultsGone, Unavailable
from airflow_batch_llm.providers import clients
from airflow_batch_llm.providers.anthropic.lines import counted_body
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.clients import (
    TRANSFER_TIMEOUT,
    checked,
    open_stream,
    stream_lines,
    unknown_option,
)
from airflow_batch_llm.providers.creation import Creation
from airflow_batch_llm.providers.failures import GeneratedSdk, VendorCodes
from airflow_batch_llm.providers.incoming import count, entries, following, parse_line, record, text
from airflow_batch_llm.providers.reach import with_shared_tls
from airflow_batch_llm.providers.steps import (
    WORKER,
    AlreadyGone,
    Calls,
    Each,
    Judge,
    ListMemory,
    Lookup,
    Parts,
    Patience,
    StatusPage,
    from_batches,
    look_up,
    patiently,
)

SDK = GeneratedSdk(
    name="anthropic",
    error="AnthropicError",
    codes=VendorCodes(
        name="Anthropic",
        no_money=frozenset({"enforced_spend_limit_reached", "contract_spend_limit_reached"}),
        # Anthropic answers 400 for these, with the code of any bad request.
        no_money_words=re.compile(r"(?i)credit balance is too low|specified API usage limits"),
        final=frozenset(
            {
                "cmek_key_disabled",
                "cmek_key_network_blocked",
                "cmek_key_unreachable",
                "cmek_feature_unsupported",
            }
        ),
    ),
)


def open_client(access: Access) -> Any:
    """Return a new synchronous client."""
    if access.client is not None:
        return checked(_with_batches(access.client()), access)
    return checked(_with_key(_opened(SDK.module.Anthropic, access, is_async=False)), access)


def open_async_client(access: Access) -> Any:
    """Return a new asynchronous client."""
    if access.async_client is not None:
        return checked(_with_batches(access.async_client()), access)
    return checked(_with_key(_opened(SDK.module.AsyncAnthropic, access, is_async=True)), access)


def _opened(client_class: Any, access: Access, *, is_async: bool) -> Any:
    options = with_shared_tls(SDK.module, access.options, is_async=is_async)
    try:
        return client_class(**{"api_key": access.api_key, "base_url": access.base_url, **options})
    except TypeError as error:
        raise unknown_option("Anthropic", error) from None


def _with_batches(client: Any) -> Any:
    """Raise `Refused` if the client's platform has no Message Batches, which the SDK's clients show in different ways."""
    batches = None
    with contextlib.suppress(Exception):
        batches = client.messages.batches
    if batches is None:
        raise Refused(
            f"{type(client).__name__} has no Message Batches. Use Anthropic's own API or the Claude Platform on AWS; "
            "for Claude on Google Cloud use the provider 'vertex'."
        )
    return client


def _with_key(client: Any) -> Any:
    if client.api_key is None and client.auth_token is None and getattr(client, "credentials", None) is None:
        raise InputError(
            "There is no key for Anthropic. Put it into the connection's password, or into ANTHROPIC_API_KEY."
        )
    return client


_BLOCK = 256 * 1024
_PREFIX, _SUFFIX = b'{"requests":[', b"]}"


def creation(path: str, shard: Path, read: Callable[[Any], str]) -> Creation:
    """Return the creation of a batch from the lines in this file; `read` takes the batch's id from the answer."""
    return Creation(path=path, pieces=_pieces(shard), last=_SUFFIX, size=_size(shard), read=read)


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield the body without its end: the lines, with commas in place of their line ends."""
    yield _PREFIX
    separator = b""
    with path.open("rb") as lines:
        while block := lines.read(_BLOCK):
            body = block.rstrip(b"\n")
            yield separator + body.replace(b"\n", b",")
            separator = b"," if len(body) < len(block) else b""


def _size(path: Path) -> int:
    with path.open("rb") as lines:
        length = lines.seek(0, 2)
        lines.seek(max(0, length - 1))
        ends = lines.read() == b"\n"
    return len(_PREFIX) + length - ends + len(_SUFFIX)


BATCHES, FILES = "/v1/messages/batches", "/v1/files"
#: The vendor deletes an attachment after this many seconds, unless a run has done so.
_FILE_SECONDS = 30 * 86_400
_LIST_LIMIT = 1000
#: Lines of a batch that are read in search of one that tells whose it is.
_LINES_LOOKED_AT = 100


class _Listed(NamedTuple):
    """One batch of a list."""

    batch_id: str
    status: BatchStatus
    created_at: float


def batch_id(batch: Mapping[str, Any]) -> str:
    """Return the id of a complete batch object. Raises for anything else."""
    _status(batch)
    return text(batch["id"])


def _listed(batch: Mapping[str, Any]) -> _Listed:
    created_at = datetime.fromisoformat(batch["created_at"]).timestamp()
    return _Listed(batch_id(batch), _status(batch), created_at)


def _status(batch: Mapping[str, Any]) -> BatchStatus:
    counts = record(batch["request_counts"])
    total = sum(map(count, counts.values()))
    return BatchStatus(
        # A batch at Anthropic always ends, even if every row of it failed: only the rows show that.
        state=BatchState.ENDED if text(batch["processing_status"]) == "ended" else BatchState.RUNNING,
        total=total,
        finished=total - counts["processing"],
    )


def check(batch_ids: Sequence[str], patience: Patience, memory: ListMemory) -> Calls[dict[str, BatchStatus]]:
    # A short list is not worth a page of a thousand.
    limit = min(_LIST_LIMIT, max(100, 2 * len(batch_ids)))

    def page(after: str | None) -> Calls[StatusPage]:
        batches, rest = yield from _list(limit, after, patience)
        return StatusPage(
            statuses={batch.batch_id: batch.status for batch in batches},
            after=rest,
            created={batch.batch_id: batch.created_at for batch in batches},
        )

    def one(batch_id: str) -> Calls[BatchStatus]:
        return (yield from clients.get(SDK, f"{BATCHES}/{batch_id}", {}, patience, _status))

    parts = Parts(size=limit, memory=memory, between=from_batches(page))
    return look_up(batch_ids, Lookup(page=page, one=one, parts=parts))


def _list(limit: int, after: str | None, patience: Patience) -> Calls[tuple[list[_Listed], str | None]]:
    def read(page: Mapping[str, Any]) -> tuple[list[_Listed], str | None]:
        batches = [_listed(batch) for batch in entries(page["data"])]
        return batches, following(page, [batch.batch_id for batch in batches], after)

    params = {"limit": limit} if after is None else {"limit": limit, "after_id": after}
    return clients.get(SDK, BATCHES, params, patience, read)


def cancel(batch_id: str, patience: Patience) -> Calls[None]:
    """Ask the batch to end. Do nothing if it has ended."""
    return clients.cancel(SDK, f"{BATCHES}/{batch_id}", patience, _status)


def store_file(file: Path, name: str, media_type: str) -> Calls[str]:
    """Upload a file. This may be repeated: a lost upload costs nothing, is found by its name, and expires."""
    options = {"headers": {"Content-Type": "multipart/form-data"}, "timeout": TRANSFER_TIMEOUT}

    def send(client: Any) -> Any:
        with file.open("rb") as content:
            part = (name, content, media_type)
            body = {"expires_in_seconds": _FILE_SECONDS}
            return client.post(FILES, cast_to=object, body=body, files=[("file", part)], options=options)

    return patiently(send, SDK.judged_file, WORKER, lambda stored: text(stored["id"]))


def find_files(prefix: str) -> Calls[dict[str, list[str]]]:
    """Find files by their names. The order of the list is not promised, so all of it is read."""
    found: dict[str, list[str]] = {}
    page: str | None = None
    while True:
        params = {"limit": _LIST_LIMIT} if page is None else {"limit": _LIST_LIMIT, "page": page}
        listed, following_page = yield from clients.get(
            SDK, FILES, params, WORKER, lambda answer: (entries(answer["data"]), answer.get("next_page"))
        )
        for one in listed:
            if one["filename"].startswith(prefix):
                found.setdefault(text(one["filename"]), []).append(text(one["id"]))
        if not following_page or following_page == page:
            return found
        page = text(following_page)


def delete(path: str) -> Calls[None]:
    """Delete a file, or an ended batch with its requests and answers. Anthropic refuses to delete a batch that runs."""

    def gone(error: Exception) -> Exception:
        failure = SDK.failure(error)
        return AlreadyGone() if failure and failure.status in (404, 410) else SDK.judged(error)

    try:
        yield from patiently(
            lambda client: client.delete(path, cast_to=object),
            gone,
            WORKER,
            lambda answer: text(answer["id"]),
        )
    except AlreadyGone:
        return


def open_results(batch_id: str, client: Any) -> Calls[Any]:
    def place(batch: Mapping[str, Any]) -> tuple[BatchState, str | None]:
        told = None if batch.get("archived_at") else batch.get("results_url")
        url = _results_url(text(told), batch_id, str(client.base_url)) if told else None
        return _status(batch).state, url

    state, url = yield from clients.get(SDK, f"{BATCHES}/{batch_id}", {}, WORKER, place)
    if not state.is_over:
        raise Unavailable(f"Batch {batch_id} has not ended, so it has no results yet.")
    if url is None:
        raise _gone(batch_id)
    return (
        yield from patiently(
            lambda client: open_stream(client, SDK.module.Stream[object], url),
            _results_error(batch_id),
            WORKER,
        )
    )


def _results_url(told: str, batch_id: str, base_url: str) -> str:
    """Return the URL of the results. The key is sent there, so it must be the host that the connection names."""
    base, url = urlsplit(base_url), urlsplit(told)
    trusted = (url.scheme, url.netloc) == (base.scheme, base.netloc)
    return told if trusted else f"{BATCHES}/{batch_id}/results"


def _results_error(batch_id: str) -> Judge:
    def gone_or(error: Exception) -> Exception:
        failure = SDK.failure(error)
        return _gone(batch_id) if failure and failure.status in (404, 410) else SDK.judged(error)

    return gone_or


def _gone(batch_id: str) -> ResultsGone:
    return ResultsGone(f"Anthropic does not show the results of batch {batch_id}: it keeps them for 29 days.")


def find(search: Search, client: Any) -> Calls[list[Sighting]]:
    sightings: list[Sighting] = []
    after: str | None = None
    while True:
        batches, after = yield from _list(_LIST_LIMIT, after, WORKER)
        for batch in batches:
            if batch.created_at < search.since:
                return sightings
            if sighting := (yield from _sighting(batch, search, client)):
                sightings.append(sighting)
        if after is None:
            return sightings


def _sighting(batch: _Listed, search: Search, client: Any) -> Calls[Sighting | None]:
    batch_id, status, _ = batch
    if batch_id in search.known or status.total not in search.requests.values():
        return None
    unsure = Sighting(batch_id=batch_id, state=status.state, token=None, requests=status.total)
    if not status.state.is_over:
        return unsure
    try:
        stream = yield from open_results(batch_id, client)
    except ResultsGone:
        return unsure
    with contextlib.closing(stream_lines(stream.response, batch_id)) as lines:
        named = next(filter(None, map(_custom_id, islice(lines, _LINES_LOOKED_AT))), None)
    if named is None:
        return unsure
    token = named.rpartition("-")[0]
    if not search.is_for(token):
        return None
    return Sighting(batch_id=batch_id, state=status.state, token=token, requests=status.total)


def _custom_id(line: bytes) -> str | None:
    """Return the custom_id of a result line, or None if the line cannot be read."""
    try:
        return text(parse_line(line)["custom_id"])
    except (ValueError, LookupError, TypeError):
        return None


def count_tokens(call: Call, prompts: Sequence[str]) -> Calls[list[int]]:
    def one(prompt: str) -> Calls[int]:
        body = counted_body(call, prompt)
        return (
            yield from patiently(
                lambda client: client.post("/v1/messages/count_tokens", cast_to=object, body=body),
                SDK.judged,
                WORKER,
                lambda answer: count(answer["input_tokens"]),
            )
        )

    counts = yield Each([one(prompt) for prompt in prompts])
    for counted in counts:
        if isinstance(counted, Exception):
            raise counted
    return list(counts)
