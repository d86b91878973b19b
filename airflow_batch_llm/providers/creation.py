"""One creation of a batch, sent once inside its lease, over any client of httpx or httpx2."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_batch_llm.core.model import Lease
from airflow_batch_llm.errors import BatchLLMError, Unavailable, UnknownFate, raise_alone
from airflow_batch_llm.providers.lease import Sending
from airflow_batch_llm.providers.shape import NotUnderstood, fate_unknown, understood
from airflow_batch_llm.providers.steps import Judge

#: Posts this content, with these headers and this time-out in seconds, and returns the answer. It never retries.
Post = Callable[[Iterator[bytes], Mapping[str, str], float], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """A request that creates a batch. Without `last` the server has nothing that it could act on."""

    path: str
    pieces: Iterable[bytes]
    last: bytes
    size: int  # of the pieces and `last` together
    read: Callable[
        [Any], str
    ]  # takes the batch's id from the answer; raises for an answer that is not a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The way to the server. `http` opens no connection before, so that each one it opens can be watched."""

    http: Any
    post: Post


def send_once(creation: Creation, line: Line, lease: Lease, judge: Judge) -> str:
    """Send a creation once, inside the lease, and return the batch's id.

    Raises the judged error; `UnknownFate` only where a batch may exist: also for an answer that a gateway may have given.
    """
    sending = Sending(lease)
    if sending.remaining <= 0:
        raise Unavailable("The lease to create this batch is over. Nothing was sent.")
    headers = {"Content-Length": str(creation.size), "Connection": "close"}
    with sending.watched(line.http):
        try:
            body = sending.body(creation.pieces, creation.last)
            answer = line.post(body, headers, sending.remaining)
        except Exception as error:
            judged = judge(error)
            if isinstance(judged, UnknownFate) and not sending.whole:
                judged = Unavailable("The creation broke off before it was sent whole, so no batch exists.")
            if judged is error and (isinstance(error, BatchLLMError) or not sending.whole):
                raise
            raise_alone(fate_unknown(error) if judged is error else judged)
    try:
        with understood():
            return creation.read(answer)
    except NotUnderstood as error:
        raise_alone(fate_unknown(error))
