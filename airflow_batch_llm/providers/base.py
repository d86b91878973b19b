"""The interface between the package and a provider of batch inference.

An adapter translates the vendor's states, rows and errors into the package's own, and no other module translates again.
It never retries a creation: a lost answer to `submit` raises `UnknownFate`, and the caller searches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from airflow_batch_llm.core.attachment import AttachmentRules
from airflow_batch_llm.core.model import (
    Answered,
    BatchStatus,
    Call,
    Lease,
    Limits,
    Result,
    ResultForm,
    Search,
    ShardFile,
    Sighting,
    Way,
)
from airflow_batch_llm.core.request import LineTemplate
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.reach import check_base_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The settings of a connection to a provider. The key never shows in a repr.

    `client` and `async_client` make SDK clients that are ready for use, such as those of an Airflow hook. They win over
    the other fields. Each call makes a new client, perhaps in a thread; the adapter closes it.
    """

    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    client: Callable[[], Any] | None = field(default=None, repr=False)
    async_client: Callable[[], Any] | None = field(default=None, repr=False)
    allow_insecure: bool = False
    """`base_url` may be http:// on another machine, or a link-local address. Default: False."""

    def __post_init__(self) -> None:
        if self.base_url:
            check_base_url(self.base_url, allow_insecure=self.allow_insecure)
        if self.api_key is not None and not is_sendable(self.api_key):
            raise InputError(
                "The API key holds a control character, white space at an end, or a letter that HTTP does not allow."
                " Often a line end was copied with it. Remove it where the key is stored."
            )

    @property
    def secrets(self) -> tuple[str, ...]:
        """The key, and the values of the headers that are sent with each request."""
        headers = self.options.get("default_headers") or {}
        values = (self.api_key or "", *map(str, headers.values()))
        return tuple(value for value in values if len(value) > 5)


def is_sendable(secret: str) -> bool:
    """Return whether a header can hold this key. An HTTP library quotes a header that it refuses."""
    return secret.isascii() and secret.isprintable() and secret == secret.strip()


class Provider(Protocol):
    """One vendor. It is cheap to build: a verb imports the SDK and opens a client when it first needs them."""

    @property
    def name(self) -> str:
        """The word before the colon of a `model_id`."""

    @property
    def limits(self) -> Limits: ...

    @property
    def host(self) -> str | None:
        """The host that answers, if it is not the vendor's own. Its answers are not the vendor's answers."""

    def encode(self, call: Call) -> LineTemplate:
        """Return the request line of this call, once for all rows. Pure. Raises `InputError` for what cannot be sent."""

    def decode(self, line: bytes) -> Result:
        """Translate one result line into the package's terms. Pure. Raises `ValueError` for a line that is not a result."""

    def upload(self, shard: ShardFile) -> str:
        """Put the shard where the provider reads it. This costs nothing. Returns a reference, or "" if none is needed."""

    def submit(self, shard: ShardFile, upload: str, lease: Lease) -> str:
        """Create the batch, once, and return its id. Nothing is sent after the lease has expired.

        `Refused`, `Later` and `Unavailable` mean that no batch exists. `UnknownFate` means that one may exist.
        """

    def check(self, batch_ids: Sequence[str]) -> Mapping[str, BatchStatus]:
        """Return the status of many batches in as few calls as the provider allows."""

    def cancel(self, batch_id: str) -> None:
        """Ask the batch to end. A batch that has already ended is left as it is. Finished rows stay readable."""

    def results(self, batch_id: str) -> Iterator[bytes]:
        """Return the raw result lines in any order, without line ends. Raises `ResultsGone` if the vendor has deleted them."""

    def find(self, search: Search) -> Sequence[Sighting]:
        """Return the batches that have the run's token, or may have it.

        Finds every one that exists and is older than the listing's lag.
        """

    def discard(self, upload: str) -> None:
        """Delete an upload. A missing upload is not an error."""

    def count_tokens(self, call: Call, prompts: Sequence[str]) -> Sequence[int] | None:
        """Return the vendor's count of each prompt's tokens, with system prompt and schema, or None if it cannot count."""

    def console_url(self, batch_id: str) -> str | None:
        """Return the vendor's page about this batch."""

    def close(self) -> None:
        """Close the synchronous client."""

    async def acheck(self, batch_ids: Sequence[str]) -> Mapping[str, BatchStatus]:
        """`check`, through the SDK's asynchronous client."""

    async def acancel(self, batch_id: str) -> None:
        """`cancel`, through the SDK's asynchronous client."""

    async def aclose(self) -> None:
        """Close the asynchronous client."""


@runtime_checkable
class DeletesBatches(Protocol):
    """Can delete the vendor's copies of a batch."""

    def delete_batch(self, batch_id: str, upload: str) -> None:
        """Delete the requests and the answers of an ended batch, and the batch itself where the vendor can.

        `upload` is the reference to its requests, or "" if it is not known. A missing batch is not an error. Raises
        `Refused` for a batch that still runs, and deletes nothing of it.
        """


@runtime_checkable
class NotesCreations(Protocol):
    """Reads its list in parts, side by side, if it knows roughly when the batches were created."""

    def note_created(self, about: Mapping[str, float]) -> None:
        """Take the approximate creation times of batches, in seconds since the epoch. A wrong time only costs calls."""


@runtime_checkable
class AsksTables(Protocol):
    """Reads the requests of a batch from a table of a warehouse, and writes its answers into another one."""

    @property
    def table_scheme(self) -> str:
        """The beginning of the URIs of such tables: `bq://`."""

    def requests_table(self, token: str, place: str) -> str:
        """Return the URI of a new table for the requests of a shard, with the columns `custom_id` and `request`.

        It is at the connection's place, or else at this one.
        """

    def answers_table(self, batch_id: str) -> str | None:
        """Return the URI of the table that an ended batch has written, if it has written one."""

    def answer_line(self, row: Mapping[str, Any]) -> bytes:
        """Return an answer as a result line. `row` has the texts `custom_id`, `status` and `response`. Pure."""

    def result_form(self, call: Call) -> ResultForm:
        """Say where the parts of an answer are in `response`. Pure. Raises `InputError` if that is not known."""


@runtime_checkable
class CapsAnswers(Protocol):
    """Knows how long the answers of its models can be."""

    def answer_cap(self, model: str) -> int:
        """Return the most tokens of one answer of a model. An unknown model gets a low number. Pure."""


@runtime_checkable
class MarksPrefixes(Protocol):
    """Can ask its vendor to cache the part of a call that all of its requests share: `Call.cache_system_prompt`."""

    def least_cached(self, call: Call) -> int | None:
        """Return the tokens from which the model caches a shared part, or None if this call cannot ask for it. Pure."""


@runtime_checkable
class TakesAttachments(Protocol):
    """Writes images and PDFs into its requests: the templates of calls with `attachments` have a `content`."""

    def attachment_rules(self, call: Call) -> AttachmentRules:
        """Return the attachments that the model of a call takes. Pure. Raises `InputError` if it takes none."""


@runtime_checkable
class StoresFiles(Protocol):
    """Keeps attachments as files of its own, which requests name: `AttachmentRules.uploaded`.

    `discard` deletes one, too.
    """

    def store_file(self, file: Path, name: str, media_type: str) -> str:
        """Upload a file under a name, which costs nothing. Returns the name by which requests name it.

        `FileRefused` means that the vendor does not store this file; any other error ends the upload of all.
        """

    def find_files(self, prefix: str) -> Mapping[str, Sequence[str]]:
        """Find the files whose names have this prefix. Returns the names that requests use for them, by the files' own names.

        An upload whose answer was lost is repeated, so one name may lead to several files.
        """


@runtime_checkable
class AnswersNow(Protocol):
    """A provider that also answers single requests in real time."""

    def flex_problem(self, call: Call) -> str | None:
        """Say why the vendor's half-price tier cannot be asked, and what to do. None if it can be. Pure."""

    async def answer(self, call: Call, line: bytes, way: Way) -> Answered:
        """Ask one request line of this call, once, and return the answer as a result line of a batch.

        `way` is `Way.FLEX` or `Way.NOW`. If the half-price tier has no room, that is `Unavailable`. A request that the
        vendor refuses by itself becomes a result line, too. `Unavailable` means that nothing was answered, so nothing
        is paid. `UnknownFate` means that the answer was lost, and may have been paid. `Refused` means that the vendor
        refuses all requests, because the key is wrong or there is no credit.
        """
