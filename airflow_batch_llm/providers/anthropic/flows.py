"""The verbs that look at batches, written once: workers and triggers drive the same generators.

A batch bears no name and no metadata, and its requests cannot be read back. A lost one is known by when it was
created and by its size, and surely only by the custom_ids of its results, once it has ended.
"""

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from airflow_batch_llm.core.model import BatchState, BatchStatus, Call, Search, Sighting
from airflow_batch_llm.errors import Refused, ResultsGone, Unavailable
from airflow_batch_llm.providers.anthropic.encode import counted_body
from airflow_batch_llm.providers.anthropic.sdk import judged, sdk
from airflow_batch_llm.providers.clients import open_stream, stream_lines
from airflow_batch_llm.providers.failures import failure_of
from airflow_batch_llm.providers.lines import parse_line
from airflow_batch_llm.providers.listing import Lookup, Page, look_up
from airflow_batch_llm.providers.redaction import saying
from airflow_batch_llm.providers.steps import WORKER, Calls, Each, Judge, Patience, patiently

BATCHES = "/v1/messages/batches"
_LIST_LIMIT = 1000


def _get(path: str, params: Mapping[str, object], patience: Patience) -> Calls[dict[str, Any]]:
    return patiently(
        lambda client: client.get(path, cast_to=object, options={"params": params}), judged, patience
    )


def _status(batch: Mapping[str, Any]) -> BatchStatus:
    counts = batch["request_counts"]
    total = sum(counts.values())
    return BatchStatus(
        # A batch there always ends, even if every row of it failed: the rows tell.
        state=BatchState.ENDED if batch["processing_status"] == "ended" else BatchState.RUNNING,
        total=total,
        finished=total - counts["processing"],
    )


def check(batch_ids: Sequence[str], patience: Patience) -> Calls[dict[str, BatchStatus]]:
    # A short list is not worth a page of a thousand.
    limit = min(_LIST_LIMIT, max(100, 2 * len(batch_ids)))

    def page(after: str | None) -> Calls[Page]:
        batches, following = yield from _list(limit, after, patience)
        return Page(statuses={batch["id"]: _status(batch) for batch in batches}, after=following)

    def one(batch_id: str) -> Calls[BatchStatus]:
        return _status((yield from _get(f"{BATCHES}/{batch_id}", {}, patience)))

    return look_up(batch_ids, Lookup(page=page, one=one))


def _list(
    limit: int, after: str | None, patience: Patience
) -> Calls[tuple[list[dict[str, Any]], str | None]]:
    params = {"limit": limit} if after is None else {"limit": limit, "after_id": after}
    answer = yield from _get(BATCHES, params, patience)
    return answer["data"], answer.get("last_id") if answer.get("has_more") else None


def cancel(batch_id: str, patience: Patience) -> Calls[None]:
    """Ask for an end. Anthropic may refuse that for a batch that has ended, and then there is nothing to do."""

    def refused_or(error: Exception) -> Exception:
        failure = failure_of(error, sdk())
        if failure and failure.status == 409:
            return saying(
                Refused(f"Anthropic did not cancel batch {batch_id}: {failure.code or 'no reason given'}."),
                status=failure.status,
                detail=failure.message,
            )
        return judged(error)

    try:
        yield from patiently(
            lambda client: client.post(f"{BATCHES}/{batch_id}/cancel", cast_to=object), refused_or, patience
        )
    except Refused:
        batch = yield from _get(f"{BATCHES}/{batch_id}", {}, patience)
        if _status(batch).state is BatchState.RUNNING:
            raise


def open_results(batch_id: str, client: Any) -> Calls[Any]:
    batch = yield from _get(f"{BATCHES}/{batch_id}", {}, WORKER)
    if _status(batch).state is BatchState.RUNNING:
        raise Unavailable(f"Batch {batch_id} has not ended, so it has no results yet.")
    if batch.get("archived_at") or not batch.get("results_url"):
        raise _gone(batch_id)
    url = _results_url(batch["results_url"], batch_id, str(client.base_url))
    return (
        yield from patiently(
            lambda client: open_stream(client, sdk().Stream[object], url), _results_error(batch_id), WORKER
        )
    )


def _results_url(told: str, batch_id: str, base_url: str) -> str:
    """Where the results are. The key is sent there, so it must be the host that the connection names."""
    base, url = urlsplit(base_url), urlsplit(told)
    trusted = (url.scheme, url.netloc) == (base.scheme, base.netloc)
    return told if trusted else f"{BATCHES}/{batch_id}/results"


def _results_error(batch_id: str) -> Judge:
    def gone_or(error: Exception) -> Exception:
        failure = failure_of(error, sdk())
        return _gone(batch_id) if failure and failure.status in (404, 410) else judged(error)

    return gone_or


def _gone(batch_id: str) -> ResultsGone:
    return ResultsGone(
        f"Anthropic no longer holds the results of batch {batch_id}: it keeps them for 29 days. "
        "Clear the task to send its rows again."
    )


def find(search: Search, client: Any) -> Calls[list[Sighting]]:
    sightings: list[Sighting] = []
    after: str | None = None
    while True:
        batches, after = yield from _list(_LIST_LIMIT, after, WORKER)
        for batch in batches:
            if datetime.fromisoformat(batch["created_at"]).timestamp() < search.since:
                return sightings
            if sighting := (yield from _sighting(batch, search, client)):
                sightings.append(sighting)
        if after is None:
            return sightings


def _sighting(batch: Mapping[str, Any], search: Search, client: Any) -> Calls[Sighting | None]:
    status, batch_id = _status(batch), batch["id"]
    if batch_id in search.known or status.total not in search.requests.values():
        return None
    unsure = Sighting(batch_id=batch_id, state=status.state, token=None, requests=status.total)
    if status.state is BatchState.RUNNING:
        return unsure
    try:
        stream = yield from open_results(batch_id, client)
    except ResultsGone:
        return unsure
    with contextlib.closing(stream_lines(stream, batch_id)) as lines:
        first = next(lines, b"{}")
    token = str(parse_line(first).get("custom_id", "")).rpartition("-")[0]
    if token.rpartition("-")[0] != search.run_token:
        return None
    return Sighting(batch_id=batch_id, state=status.state, token=token, requests=status.total)


def count_tokens(call: Call, prompts: Sequence[str]) -> Calls[list[int]]:
    def one(prompt: str) -> Calls[int]:
        body = counted_body(call, prompt)
        answer = yield from patiently(
            lambda client: client.post("/v1/messages/count_tokens", cast_to=object, body=body), judged, WORKER
        )
        tokens: int = answer["input_tokens"]
        return tokens

    counts = yield Each([one(prompt) for prompt in prompts])
    for count in counts:
        if isinstance(count, Exception):
            raise count
    return list(counts)
