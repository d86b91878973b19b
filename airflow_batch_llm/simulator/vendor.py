"""The interface of a vendor's protocol in the simulator, and the values that pass through it.

A vendor owns its paths, its wire format and the `facts` of its batches; time, execution, faults and the ledger
are common and live elsewhere.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import starlette.requests
from starlette.responses import Response

from airflow_batch_llm.simulator.bodies import parse
from airflow_batch_llm.simulator.database import Batch, BilledUsage, RowFate
from airflow_batch_llm.simulator.request import AskedRequest, Reply, RowError


class Refusal(Exception):
    """A call that the vendor answers with an error. `code` is the vendor's own word for it.

    `kind` is the `type` in OpenAI's body, where that does not follow from the code.
    """

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        param: str | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.kind = kind
        self.headers: dict[str, str] = {}


async def json_object(call: starlette.requests.Request, complaint: str) -> dict[str, Any]:
    """The body of a call. Raises a refusal with the vendor's complaint if it is not a JSON object."""
    try:
        body = parse(await call.body())
    except ValueError as error:
        raise Refusal(400, None, complaint) from error
    if not isinstance(body, dict):
        raise Refusal(400, None, complaint)
    return body


class Endpoint(NamedTuple):
    """One path of a vendor. `about_state`: it tells how batches stand, so the latency knob slows it down.

    `header` tells the vendor's calls from those to another vendor's path of the same name.
    """

    method: str
    path: str
    name: str
    handle: Callable[[starlette.requests.Request], Awaitable[Response]]
    about_state: bool = False
    header: str = ""


class Parsed(NamedTuple):
    """One input row, read. Either a request to be answered or the error that it gets."""

    custom_id: str
    content: bytes
    model: str
    request: AskedRequest | None
    error: RowError | None
    source: Any


class Written(NamedTuple):
    """One result line, and what the ledger says about it. `line` is empty where the vendor leaves none."""

    line: bytes
    channel: str
    outcome: RowFate
    usage: BilledUsage | None


class Rows(Protocol):
    """The reader of a batch's rows and the writer of its results. Used in a worker thread."""

    def read(self, line: bytes) -> Parsed: ...

    def write(self, parsed: Parsed, answer: Reply) -> Written:
        """The line of an executed row."""

    def skip(self, parsed: Parsed, outcome: RowFate) -> Written:
        """The line of a row that was not executed: expired or canceled."""


@dataclass(slots=True, kw_only=True)
class BatchTally:
    """The totals of a batch's execution."""

    outcomes: dict[str, int] = field(default_factory=dict)
    usage: BilledUsage = field(default_factory=BilledUsage)
    written: dict[str, int] = field(default_factory=dict)
    """Lines per channel; a channel without lines has no file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The rows may run."""

    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The batch fails: its rows may not run, or their results cannot be delivered."""

    facts: Mapping[str, Any]


class Vendor(Protocol):
    """One vendor's protocol."""

    @property
    def provider(self) -> str: ...

    @property
    def request_id_header(self) -> str:
        """The header that names a call in the vendor's logs."""

    def endpoints(self) -> Sequence[Endpoint]: ...

    def error(self, refusal: Refusal) -> Response:
        """The vendor's own error body."""

    def prepare(self, batch: Batch) -> Prepared | Rejected:
        """Look at the rows of an accepted batch, in a worker thread."""

    def rows(self, batch: Batch) -> Rows: ...

    def finish(self, batch: Batch, tally: BatchTally) -> Mapping[str, Any] | Rejected:
        """Put the result files where the user reads them. Returns facts. In a worker thread."""
