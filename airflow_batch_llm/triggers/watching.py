"""Look for files that have arrived and for rows that wait, and the loop of a trigger that watches an asset.

The loop looks, reports, and remembers in the workspace what was reported. Nothing is lost: what was reported is written down one
look after its event, when Airflow has long stored the event. A triggerer that is killed in between reports the same once more.
That costs no answer: a row that has one is not sent again.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_batch_llm.core.request import canonical, digest
from airflow_batch_llm.errors import BatchLLMError, InputError
from airflow_batch_llm.hooks.arguments import check_params, deployment, one_of
from airflow_batch_llm.hooks.monitoring import quiet_sdks_here
from airflow_batch_llm.hooks.warehouse import warehouse

if TYPE_CHECKING:
    from airflow_batch_llm.stage.records.registers import Registers


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRows:
    """The rows to count, and the number or age that is enough."""

    conn_id: str
    query: str  # what stands after FROM: a SELECT in brackets, or a table's name
    min_rows: int
    since: str | None = None  # the column, or expression, that says since when a row waits
    max_age: float | None = None  # seconds
    hook_params: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def query_of(sql: str | None, table: str | None) -> str:
        """Return what stands after FROM."""
        return table or f"({(sql or '').rstrip().rstrip(';')}\n)"  # a comment may end the query

    def to_json(self) -> dict[str, Any]:
        """For the triggerer."""
        return asdict(self)

    def count(self) -> "Waiting":
        """Ask the database. It blocks."""
        from airflow_batch_llm.core.settings import Source

        oldest = self.since or "NULL"
        database = warehouse(self.conn_id, self.hook_params, argument="conn_id")
        try:
            counted = database.read(
                Source(sql=f"SELECT count(*) AS n, min({oldest}) AS oldest FROM {self.query} waiting")
            ).read_all()
        finally:
            database.close()
        (row,) = counted.to_pylist()
        return Waiting(rows=int(row["n"]), oldest=_moment(row["oldest"]))

    def is_enough(self, waiting: "Waiting", now: float) -> bool:
        """Return whether there are enough rows, or one has waited long enough."""
        if waiting.rows >= self.min_rows:
            return True
        if self.max_age is None or waiting.oldest is None:
            return False
        return waiting.rows > 0 and now - waiting.oldest >= self.max_age

    def is_due(self, waiting: "Waiting", now: float, last: "LastEvent | None", repeat_after: float) -> bool:
        """Return whether there are enough rows for an event after the last one, which may not have been dealt with yet."""
        if not self.is_enough(waiting, now):
            return False
        return last is None or waiting.rows >= last.least + self.min_rows or now - last.at >= repeat_after

    def after(self, waiting: "Waiting", now: float, last: "LastEvent | None") -> "LastEvent | None":
        """Return the last event, as far as it still counts after a look that led to no event."""
        if last is None or not self.is_enough(waiting, now):
            return None
        return replace(last, least=min(last.least, waiting.rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class LastEvent:
    """The last event of a watcher, and the least number of rows that has waited since."""

    at: float
    least: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The rows that wait, and since when the oldest does, in seconds since the epoch."""

    rows: int
    oldest: float | None


def check_pending(
    *,
    sql: str | None,
    table: str | None,
    since: str | None,
    max_age: object,
    hook_params: Mapping[str, Any] | None,
) -> None:
    """Refuse, while the Dag is read, arguments that do not fit together."""
    one_of(sql=sql, table=table)
    check_params(hook_params=hook_params)
    if max_age is not None and since is None:
        raise InputError("since is missing: max_age needs the column that says since when a row waits.")


def _moment(value: Any) -> float | None:
    """A day counts from its begin, a time without a zone as UTC; SQLite has only text."""
    if value is None:
        return None
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    return float((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


#: The fields of a listing that change with a file's content, the best first. Each kind of storage has its own.
_VERSIONS = ("generation", "etag", "ETag", "mtime", "last_modified", "LastModified", "updated", "created")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """The marks of files: a hash of all that a file is known by."""

    reported: frozenset[str] = frozenset()
    """Files that are there and were reported."""
    found: frozenset[str] = frozenset()
    """Files that the last look found."""

    def after(self, files: Mapping[str, str]) -> "tuple[list[str], Arrivals]":
        """Return the URIs to report, and the marks after that. `files` has the URI of each mark.

        A file is reported once two looks in a row have found it unchanged: until then it may still be growing.
        """
        new = (files.keys() & self.found) - self.reported
        known = Arrivals(reported=(self.reported & files.keys()) | new, found=frozenset(files))
        return sorted(files[mark] for mark in new), known


def list_files(uri: str, conn_id: str | None) -> dict[str, str]:
    """Return the URI of each file that a URI or pattern names now, by its mark. It blocks."""
    from airflow_batch_llm.hooks.object_storage import open_path, split_connection
    from airflow_batch_llm.warehouses.files.listing import matching

    system, path = open_path(uri, conn_id)
    listed = matching(system, path)
    if path in listed and listed[path].get("type") == "directory":
        raise InputError(f"{uri} is a folder. Name its files by a pattern, such as /*.parquet at the end.")
    named, _ = split_connection(uri)
    files = {}
    for found, details in listed.items():
        whole = str(system.unstrip_protocol(found))
        whole = whole.replace("://", f"://{named}@", 1) if named else whole
        files[_mark(whole, details)] = whole
    return files


def refuse_password(uri: str) -> None:
    """Refuse a URI that holds a password. A URI may name a connection: s3://conn_id@bucket/folder."""
    place = uri.partition("://")[2].partition("/")[0]
    if ":" in place.rpartition("@")[0]:
        raise InputError(
            "uri holds a user and a password, which others could read in the trigger's arguments. Put them into a"
            " connection, and name it as conn_id."
        )


def _mark(uri: str, details: Mapping[str, Any]) -> str:
    version = next((details[name] for name in _VERSIONS if details.get(name) is not None), None)
    return hashlib.blake2b(repr((uri, details.get("size"), str(version))).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """The memory of one watcher, which is known by its class and all of its arguments."""

    workspace: str | None
    watcher: str

    @classmethod
    def of(cls, workspace: str | None, classpath: str, arguments: Mapping[str, Any]) -> "Watermark":
        """Return the watermark of a trigger. Airflow runs equal triggers as one, so they have one watermark."""
        watcher = digest(canonical([deployment(), classpath, dict(arguments)]))
        return cls(workspace=workspace, watcher=watcher[:16])

    def read(self) -> dict[str, Any]:
        """Return what was written last. Returns an empty mapping if nothing was. It blocks."""
        written = self._registers().watermark(self.watcher)
        return {} if written is None else dict(orjson.loads(written))

    def write(self, memory: Mapping[str, Any]) -> bool:
        """Replace what was written before. It blocks. Returns True."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "watermark.json")
            file.write_bytes(orjson.dumps(memory))
            self._registers().write_watermark(self.watcher, file)
        return True

    def _registers(self) -> "Registers":
        from airflow_batch_llm.hooks.object_storage import open_workspace
        from airflow_batch_llm.stage.records.registers import Registers

        return Registers(workspace=open_workspace(self.workspace))


class WatcherTrigger(BaseEventTrigger):
    """Fire an event after each look that found something new. A watcher never ends.

    :param poll_interval: seconds between two looks
    :param workspace: URI of the folder that keeps the watermark; None for the configured one
    """

    def __init__(self, *, poll_interval: float, workspace: str | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.poll_interval = poll_interval
        self.workspace = workspace

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make this trigger again."""
        raise NotImplementedError

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on from what an earlier triggerer has reported. The memory is empty at the very first look."""
        raise NotImplementedError

    def memory(self) -> dict[str, Any]:
        """Return what has been reported, for `recall`."""
        raise NotImplementedError

    def look(self) -> Sequence[Mapping[str, Any]]:
        """Look once, and return the payloads of the events to fire. It blocks, so it runs in a thread."""
        raise NotImplementedError

    def serialize(self) -> tuple[str, dict[str, Any]]:
        own = {"poll_interval": self.poll_interval, "workspace": self.workspace}
        return f"{type(self).__module__}.{type(self).__qualname__}", {**self.arguments(), **own}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        quiet_sdks_here()
        watermark = Watermark.of(self.workspace, *self.serialize())
        written: dict[str, Any] | None = None
        while True:
            if written is None:
                written = await self._tried(watermark.read)
                if written is not None:
                    self.recall(written)
            payloads = None if written is None else await self._tried(self.look)
            for payload in payloads or ():
                yield TriggerEvent(payload)  # type: ignore[no-untyped-call]
            await asyncio.sleep(self.poll_interval)
            reported = self.memory()
            if written is not None and written != reported and await self._tried(watermark.write, reported):
                written = reported

    async def _tried(self, call: Any, *arguments: Any) -> Any:
        """Return what the call returns. Returns None if it failed: the next look tries it again."""
        try:
            return await sync_to_async(call, thread_sensitive=False)(*arguments)
        except BatchLLMError as error:
            self.log.warning(
                "The watcher could not look, and tries again in %g s: %s", self.poll_interval, error
            )
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, the watcher goes on
            # The driver's own words may quote a value.
            kind = type(error).__name__
            self.log.warning(
                "The watcher could not look, and tries again in %g s (%s).", self.poll_interval, kind
            )
        return None
