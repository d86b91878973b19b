"""Look at batches: each verb is one generator, which workers and triggers both drive.

An SDK client is imported when it is opened.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import floor
from typing import Any, NamedTuple

from airflow_batch_llm.core.model import BatchState, BatchStatus, Call, Outcome, Search, Sighting
from airflow_batch_llm.errors import InputError, Refused, ResultsGone, Unavailable
from airflow_batch_llm.providers import clients
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.clients import checked, open_stream, unknown_option
from airflow_batch_llm.providers.failures import GeneratedSdk, VendorCodes, word
from airflow_batch_llm.providers.incoming import count, count_or_zero, entries, following, record, text
from airflow_batch_llm.providers.openai.lines import counted_body
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
    name="openai",
    error="OpenAIError",
    codes=VendorCodes(
        name="OpenAI",
        no_money=frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}),
        full=frozenset({"token_limit_exceeded"}),
    ),
)

#: The package's own options; the others go to the SDK's client.
OWN_OPTIONS = frozenset({"input_expires_after", "output_expires_after"})


def open_client(access: Access) -> Any:
    """Return a new synchronous client."""
    opened = (
        access.client() if access.client is not None else _opened(SDK.module.OpenAI, access, is_async=False)
    )
    return checked(opened, access)


def open_async_client(access: Access) -> Any:
    """Return a new asynchronous client."""
    make = access.async_client
    opened = make() if make is not None else _opened(SDK.module.AsyncOpenAI, access, is_async=True)
    return checked(opened, access)


def _opened(client_class: Any, access: Access, *, is_async: bool) -> Any:
    given = {name: value for name, value in access.options.items() if name not in OWN_OPTIONS}
    options = with_shared_tls(SDK.module, given, is_async=is_async)
    try:
        return client_class(**{"api_key": access.api_key, "base_url": access.base_url, **options})
    except SDK.module.OpenAIError:
        raise InputError(
            "There is no key for OpenAI. Put it into the connection's password; where a server takes any, write any."
        ) from None
    except TypeError as error:
        raise unknown_option("OpenAI", error) from None


BATCHES = "/batches"
FILES = "/files"
#: The metadata of a batch that names its shard.
RUN_KEY, SHARD_KEY = "airflow_batch_llm_run", "airflow_batch_llm_shard"

_LIST_LIMIT = 100
#: The purpose of files that requests name.
ATTACHMENTS = "user_data"
_FILES_AT_ONCE = 10_000


_ENDED = frozenset({"completed", "expired", "cancelled"})
_CANCELLED = frozenset({"cancelling", "cancelled"})
# A batch that was stopped may leave rows out of both of its files.
_UNMENTIONED = {"expired": Outcome.EXPIRED, "cancelled": Outcome.CANCELED}
# A validation failure that may pass: the same file may be accepted when other batches have ended.
_LATER = "token_limit_exceeded"


def status_of(batch: Mapping[str, Any]) -> BatchStatus:
    """Translate a batch of OpenAI's into the package's terms."""
    counts, state = record(batch.get("request_counts") or {}), text(batch["status"])
    finished = count_or_zero(counts.get("completed")) + count_or_zero(counts.get("failed"))
    # Until the file is validated the total is 0, which means that it is not known yet.
    total = count_or_zero(counts.get("total")) or None
    if state == "failed":
        errors = entries((batch.get("errors") or {}).get("data") or [])
        return BatchStatus(
            state=BatchState.REJECTED,
            total=total,
            finished=0,
            reason=_reason(errors),
            later=bool(errors) and all(error.get("code") == _LATER for error in errors),
        )
    return BatchStatus(
        state=BatchState.ENDED if state in _ENDED else BatchState.RUNNING,
        total=total,
        finished=finished if total else None,
        unmentioned=_UNMENTIONED.get(state, Outcome.MISSING),
    )


def _reason(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return the error codes and their lines, without the messages, which may quote a row."""
    told = []
    for error in errors[:10]:
        line, param = error.get("line"), word(error.get("param"))
        place = "".join([f" at line {line}" if isinstance(line, int) else "", f" ({param})" if param else ""])
        told.append(f"{word(error.get('code')) or 'unknown'}{place}")
    return "; ".join(told) or "the provider gives no reason"


class _Listed(NamedTuple):
    """One batch of a list."""

    batch_id: str
    status: BatchStatus
    created_at: float
    metadata: Mapping[str, Any]
    input_file: str
    cancelled: bool  # a user or a run has asked for its end

    @property
    def token(self) -> str | None:
        """The shard token that its metadata names."""
        token = self.metadata.get(SHARD_KEY)
        return token if isinstance(token, str) else None


def batch_id(batch: Mapping[str, Any]) -> str:
    """Return the id of a complete batch object. Raises for anything else."""
    status_of(batch)
    return text(batch["id"])


def _listed(batch: Mapping[str, Any]) -> _Listed:
    metadata = record(batch.get("metadata") or {})
    created_at = float(batch["created_at"])
    cancelled = batch["status"] in _CANCELLED
    return _Listed(
        batch_id(batch), status_of(batch), created_at, metadata, text(batch["input_file_id"]), cancelled
    )


def check(batch_ids: Sequence[str], patience: Patience, memory: ListMemory) -> Calls[dict[str, BatchStatus]]:
    """Return the status of each of these batches."""

    def page(after: str | None) -> Calls[StatusPage]:
        batches, rest = yield from _list(after, patience)
        return StatusPage(
            created={batch.batch_id: batch.created_at for batch in batches},
            statuses={batch.batch_id: batch.status for batch in batches},
            after=rest,
            tokens={
                batch.batch_id: batch.token
                for batch in batches
                if batch.token is not None and not batch.cancelled
            },
        )

    def one(batch_id: str) -> Calls[BatchStatus]:
        return (yield from clients.get(SDK, f"{BATCHES}/{batch_id}", {}, patience, status_of))

    parts = Parts(size=_LIST_LIMIT, memory=memory, between=from_batches(page))
    return look_up(batch_ids, Lookup(page=page, one=one, by_name=memory.by_name, parts=parts))


def _list(after: str | None, patience: Patience) -> Calls[tuple[list[_Listed], str | None]]:
    def read(page: Mapping[str, Any]) -> tuple[list[_Listed], str | None]:
        batches = [_listed(batch) for batch in entries(page["data"])]
        return batches, following(page, [batch.batch_id for batch in batches], after)

    params = {"limit": _LIST_LIMIT} if after is None else {"limit": _LIST_LIMIT, "after": after}
    return clients.get(SDK, BATCHES, params, patience, read)


def cancel(batch_id: str, patience: Patience) -> Calls[None]:
    """Ask the batch to end. Do nothing if it has ended."""
    return clients.cancel(SDK, f"{BATCHES}/{batch_id}", patience, status_of)


def result_files(batch_id: str) -> Calls[list[str]]:
    """Return the files of an ended batch: one for rows that ran and one for rows that did not. Either may be absent."""

    def read(batch: Mapping[str, Any]) -> tuple[BatchState, list[str]]:
        files = [text(batch[name]) for name in ("output_file_id", "error_file_id") if batch.get(name)]
        return status_of(batch).state, files

    state, files = yield from clients.get(SDK, f"{BATCHES}/{batch_id}", {}, WORKER, read)
    if not state.is_over:
        raise Unavailable(f"Batch {batch_id} has not ended, so it has no results yet.")
    return files


def open_file(file_id: str, batch_id: str) -> Calls[Any]:
    """Return an open stream of this file's content."""

    def gone_or(error: Exception) -> Exception:
        failure = SDK.failure(error)
        if failure and failure.status in (404, 410):
            return ResultsGone(
                f"OpenAI does not show the results of batch {batch_id} (file {file_id}): files expire."
            )
        return SDK.judged(error)

    judge: Judge = gone_or
    url = f"{FILES}/{file_id}/content"
    return patiently(lambda client: open_stream(client, SDK.module.Stream[object], url), judge, WORKER)


def find(search: Search, *, own_host: bool) -> Calls[list[Sighting]]:
    """Return the batches that have the run's metadata and no record."""
    sightings: list[Sighting] = []
    after: str | None = None
    while True:
        batches, after = yield from _list(after, WORKER)
        for batch in batches:
            # OpenAI's time is in whole seconds, rounded down.
            if batch.created_at < floor(search.since):
                return sightings
            if batch.batch_id in search.known:
                continue
            token = yield from _token(batch, search.requests.values(), own_host=own_host)
            if token is not None and search.is_for(token):
                status = batch.status
                sightings.append(
                    Sighting(batch_id=batch.batch_id, state=status.state, token=token, requests=status.total)
                )
        if after is None:
            return sightings


def _token(batch: _Listed, sizes: Iterable[int], *, own_host: bool) -> Calls[str | None]:
    """Return the shard token of a batch, from its metadata, or from its input file's name if a server drops metadata."""
    if batch.metadata or own_host:
        return batch.token
    if batch.status.total not in {None, *sizes}:
        return None
    try:
        name = yield from clients.get(
            SDK, f"{FILES}/{batch.input_file}", {}, WORKER, lambda file: str(record(file).get("filename", ""))
        )
    except Refused:
        return None
    return name.removesuffix(".jsonl")


def find_files(prefix: str) -> Calls[dict[str, list[str]]]:
    """Find attachments by their names. Not every compatible server keeps an order, so all pages are read."""
    found: dict[str, list[str]] = {}
    after: str | None = None
    while True:
        params = {"purpose": ATTACHMENTS, "limit": _FILES_AT_ONCE} | ({"after": after} if after else {})
        files, after = yield from clients.get(SDK, FILES, params, WORKER, partial(_listed_files, after))
        for file_id, name in files:
            if name.startswith(prefix):
                found.setdefault(name, []).append(file_id)
        if after is None:
            return found


def _listed_files(after: str | None, page: Mapping[str, Any]) -> tuple[list[tuple[str, str]], str | None]:
    files = [(text(file["id"]), str(file.get("filename", ""))) for file in entries(page["data"])]
    return files, following(page, [file_id for file_id, _ in files], after)


def discard(file_id: str) -> Calls[None]:
    """Delete a file. A missing file counts as deleted."""

    def gone(error: Exception) -> Exception:
        failure = SDK.failure(error)
        return AlreadyGone() if failure and failure.status in (404, 410) else SDK.judged(error)

    def told(answer: Any) -> None:
        # Some compatible servers answer without a body. An HTML page means that nothing was deleted.
        if answer not in (None, "") and not record(answer).get("deleted"):
            raise ValueError

    try:
        yield from patiently(
            lambda client: client.delete(f"{FILES}/{file_id}", cast_to=object), gone, WORKER, told
        )
    except AlreadyGone:
        return


def delete(batch_id: str, upload: str) -> Calls[None]:
    """Delete the files of an ended batch. The batch itself stays listed: OpenAI cannot delete it."""

    def read(batch: Mapping[str, Any]) -> tuple[BatchState, list[str]]:
        names = ("output_file_id", "error_file_id", "input_file_id")
        return status_of(batch).state, [text(batch[name]) for name in names if batch.get(name)]

    def gone(error: Exception) -> Exception:
        failure = SDK.failure(error)
        return AlreadyGone() if failure and failure.status == 404 else SDK.judged(error)

    try:
        state, files = yield from patiently(
            lambda client: client.get(f"{BATCHES}/{batch_id}", cast_to=object), gone, WORKER, read
        )
    except AlreadyGone:
        state, files = BatchState.ENDED, []
    if not state.is_over:
        raise Refused(f"Batch {batch_id} has not ended, so its files stay.")
    for file_id in dict.fromkeys((*files, *filter(None, [upload]))):
        yield from discard(file_id)


def count_tokens(call: Call, prompts: Sequence[str]) -> Calls[list[int] | None]:
    """Return the input tokens of each prompt, or None if the server does not count."""

    def absent_or(error: Exception) -> Exception:
        failure = SDK.failure(error)
        return AlreadyGone() if failure and failure.status in (404, 405, 501) else SDK.judged(error)

    def one(prompt: str) -> Calls[int]:
        body = counted_body(call, prompt)
        return (
            yield from patiently(
                lambda client: client.post("/responses/input_tokens", cast_to=object, body=body),
                absent_or,
                WORKER,
                lambda answer: count(answer["input_tokens"]),
            )
        )

    counts = yield Each([one(prompt) for prompt in prompts])
    if any(isinstance(counted, AlreadyGone) for counted in counts):
        return None
    for counted in counts:
        if isinstance(counted, Exception):
            raise counted
    return list(counts)
