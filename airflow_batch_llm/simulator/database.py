"""All state of the simulator, in one SQLite file.

One connection behind one lock: writes are short, and a step that a crash interrupts is simply done again from
the batch's phase. The table of charges has no index but its order of arrival, so that a million rows go in quickly. Their
sums are kept beside it, so that the ledger reads no rows to count them.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import orjson


class BatchPhase(StrEnum):
    """The phase of a batch."""

    ACCEPTED = "accepted"  # created, its rows not yet looked at
    RUNNING = "running"  # its rows wait for the end of the batch
    CANCELING = "canceling"  # asked to stop, not yet stopped
    FINISHING = "finishing"  # its rows are being executed
    ENDED = "ended"  # results can be read
    REJECTED = "rejected"  # refused after creation; no row was executed


LIVE = frozenset({BatchPhase.ACCEPTED, BatchPhase.RUNNING, BatchPhase.CANCELING, BatchPhase.FINISHING})


class RowFate(StrEnum):
    """The fate of a row, for the ledger."""

    SUCCEEDED = "succeeded"
    ERRORED = "errored"
    EXPIRED = "expired"
    CANCELED = "canceled"


class BilledWay(StrEnum):
    """The ways to ask, which have different prices."""

    BATCH = "batch"
    NOW = "now"  # in real time
    FLEX = "flex"  # in real time, at the price of a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch. `facts` is what only its vendor understands; `wake_at` is when its next step is due."""

    seq: int
    id: str
    provider: str
    phase: BatchPhase
    created_at: float
    wake_at: float | None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of a user at a vendor. Its bytes lie in the data directory under its id."""

    id: str
    purpose: str
    filename: str
    bytes: int
    created_at: float
    expires_at: float | None


class BilledUsage(NamedTuple):
    """Tokens of one row. `input` includes the cached and the cache-written ones, `output` the reasoning ones."""

    input: int = 0
    cached: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0


SUM_OF_TOKENS = ", ".join(f"coalesce(sum({name}), 0)" for name in BilledUsage._fields)


class Charge(NamedTuple):
    """One answer as the ledger keeps it. A tuple, because a million of them are made.

    A real-time answer has no `custom_id`, and its `line` is its number among all of them.
    """

    line: int
    custom_id: str
    content: bytes
    outcome: str
    charged: int
    model: str
    input: int
    cached: int
    cache_write: int
    output: int
    reasoning: int


_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, provider TEXT NOT NULL, phase TEXT NOT NULL,
    created_at REAL NOT NULL, wake_at REAL, facts BLOB NOT NULL, deleted INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS batches_wake ON batches (wake_at) WHERE wake_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS charges (
    batch INTEGER NOT NULL, line INTEGER NOT NULL, custom_id TEXT NOT NULL, content BLOB NOT NULL,
    outcome TEXT NOT NULL, charged INTEGER NOT NULL, model TEXT NOT NULL, input INTEGER NOT NULL,
    cached INTEGER NOT NULL, cache_write INTEGER NOT NULL, output INTEGER NOT NULL, reasoning INTEGER NOT NULL,
    PRIMARY KEY (batch, line)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sums (
    batch INTEGER NOT NULL, outcome TEXT NOT NULL, charged INTEGER NOT NULL, model TEXT NOT NULL,
    n INTEGER NOT NULL, input INTEGER NOT NULL, cached INTEGER NOT NULL, cache_write INTEGER NOT NULL,
    output INTEGER NOT NULL, reasoning INTEGER NOT NULL,
    PRIMARY KEY (batch, outcome, charged, model)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS asked (
    line INTEGER PRIMARY KEY AUTOINCREMENT, provider TEXT NOT NULL, way TEXT NOT NULL, content BLOB NOT NULL,
    model TEXT NOT NULL, input INTEGER NOT NULL, cached INTEGER NOT NULL, cache_write INTEGER NOT NULL,
    output INTEGER NOT NULL, reasoning INTEGER NOT NULL);
CREATE VIEW IF NOT EXISTS answers AS
    SELECT b.provider, b.id AS batch, 'batch' AS way, c.line, c.custom_id, c.content, c.outcome, c.charged, c.model,
        c.input, c.cached, c.cache_write, c.output, c.reasoning FROM charges c JOIN batches b ON b.seq = c.batch
    UNION ALL SELECT provider, NULL, way, line, '', content, 'succeeded', 1, model,
        input, cached, cache_write, output, reasoning FROM asked;
CREATE VIEW IF NOT EXISTS counts AS
    SELECT b.provider, 'batch' AS way, s.outcome, s.charged, s.model, s.n, s.input, s.cached, s.cache_write, s.output,
        s.reasoning FROM sums s JOIN batches b ON b.seq = s.batch
    UNION ALL SELECT provider, way, 'succeeded', 1, model, count(*), sum(input), sum(cached), sum(cache_write),
        sum(output), sum(reasoning) FROM asked GROUP BY provider, way, model;
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, purpose TEXT NOT NULL, filename TEXT NOT NULL,
    bytes INTEGER NOT NULL, created_at REAL NOT NULL, expires_at REAL);
CREATE TABLE IF NOT EXISTS calls (
    provider TEXT NOT NULL, endpoint TEXT NOT NULL, status INTEGER NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY (provider, endpoint, status));
CREATE TABLE IF NOT EXISTS faults (id INTEGER PRIMARY KEY, document BLOB NOT NULL, seen INTEGER NOT NULL DEFAULT 0);
"""
_SUM = (
    "INSERT INTO sums SELECT batch, outcome, charged, model, count(*), sum(input), sum(cached), sum(cache_write),"
    " sum(output), sum(reasoning) FROM charges WHERE {} GROUP BY batch, outcome, charged, model"
)
_SUM_OLD = _SUM.format("NOT EXISTS (SELECT 1 FROM sums)")  # the charges of a release that kept no sums
_SUM_NEW = f"""
{_SUM.format("batch = ? AND line >= ?")}
ON CONFLICT DO UPDATE SET n = n + excluded.n, input = input + excluded.input, cached = cached + excluded.cached,
    cache_write = cache_write + excluded.cache_write, output = output + excluded.output,
    reasoning = reasoning + excluded.reasoning
"""
_BATCH = "SELECT seq, id, provider, phase, created_at, wake_at, facts FROM batches "
_FILE = "SELECT id, purpose, filename, bytes, created_at, expires_at FROM files "


def open_connection(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time."""
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=60)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")
    return connection


class Database:
    """Reads and writes of whole records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = open_connection(path)
        self._connection.executescript(_SCHEMA)
        self._connection.execute(_SUM_OLD)
        self._lock = threading.RLock()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    # -- meta ----------------------------------------------------------------------------------------------------

    def get_meta(self, key: str) -> Any:
        rows = self._all("SELECT value FROM meta WHERE key = ?", (key,))
        return orjson.loads(rows[0][0]) if rows else None

    def set_meta(self, key: str, value: Any) -> None:
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, orjson.dumps(value)))

    # -- batches -------------------------------------------------------------------------------------------------

    def next_batch_number(self) -> int:
        """The number that the next batch would have; never one that was used before."""
        rows = self._all("SELECT seq FROM sqlite_sequence WHERE name = 'batches'")
        return (rows[0][0] if rows else 0) + 1

    def add_batch(self, batch: Batch) -> Batch:
        values = (
            batch.id,
            batch.provider,
            batch.phase,
            batch.created_at,
            batch.wake_at,
            orjson.dumps(batch.facts),
        )
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO batches (id, provider, phase, created_at, wake_at, facts) VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )
        added = self.batch(batch.id)
        assert added is not None
        return added

    def batch(self, batch_id: str) -> Batch | None:
        rows = self._all(_BATCH + "WHERE id = ? AND deleted = 0", (batch_id,))
        return _batch(rows[0]) if rows else None

    def change_batch(self, batch_id: str, phase: BatchPhase, wake_at: float | None, **facts: Any) -> Batch:
        """Move a batch on; `facts` are added to those that it has."""
        with self._writing() as connection:
            (known,) = connection.execute("SELECT facts FROM batches WHERE id = ?", (batch_id,)).fetchone()
            connection.execute(
                "UPDATE batches SET phase = ?, wake_at = ?, facts = ? WHERE id = ?",
                (phase, wake_at, orjson.dumps(orjson.loads(known) | facts), batch_id),
            )
        changed = self.batch(batch_id)
        assert changed is not None
        return changed

    def delete_batch(self, batch_id: str) -> None:
        with self._writing() as connection:
            connection.execute("UPDATE batches SET deleted = 1, wake_at = NULL WHERE id = ?", (batch_id,))

    def newest_batches(self, provider: str, before_seq: int | None, limit: int) -> list[Batch]:
        """Batches from the newest to the oldest, those older than `before_seq` only."""
        rows = self._all(
            _BATCH + "WHERE provider = ? AND deleted = 0 AND seq < ? ORDER BY seq DESC LIMIT ?",
            (provider, before_seq if before_seq is not None else 2**62, limit),
        )
        return [_batch(row) for row in rows]

    def batches_after(self, provider: str, seq: int, limit: int) -> list[Batch]:
        """The batches that came next after `seq`, oldest first."""
        rows = self._all(
            _BATCH + "WHERE provider = ? AND deleted = 0 AND seq > ? ORDER BY seq LIMIT ?",
            (provider, seq, limit),
        )
        return [_batch(row) for row in rows]

    def live_batches(self, provider: str) -> list[Batch]:
        marks = ", ".join("?" for _ in LIVE)
        rows = self._all(_BATCH + f"WHERE provider = ? AND phase IN ({marks})", (provider, *LIVE))
        return [_batch(row) for row in rows]

    def due_batches(self, now: float) -> list[str]:
        """The ids of the batches whose next step is due, the oldest step first."""
        rows = self._all("SELECT id FROM batches WHERE wake_at <= ? ORDER BY wake_at, seq", (now,))
        return [batch_id for (batch_id,) in rows]

    def next_wake(self, now: float) -> float | None:
        """The moment of the next step that is not due yet."""
        wake: float | None = self._all("SELECT min(wake_at) FROM batches WHERE wake_at > ?", (now,))[0][0]
        return wake

    # -- charges -------------------------------------------------------------------------------------------------

    def forget_charges(self, seq: int) -> None:
        """Execution of a batch begins from its first row, also when an earlier attempt was cut off."""
        with self._writing() as connection:
            connection.execute("DELETE FROM charges WHERE batch = ?", (seq,))
            connection.execute("DELETE FROM sums WHERE batch = ?", (seq,))

    def add_charges(self, seq: int, charges: Sequence[Charge]) -> None:
        """Keep the charges of some lines, which follow those that are kept already, and add them to the sums."""
        with self._writing() as connection:
            connection.executemany(
                f"INSERT INTO charges VALUES ({seq:d}, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                charges,
            )
            connection.execute(_SUM_NEW, (seq, charges[0].line))

    def outcomes(self, seq: int) -> dict[str, int]:
        """The rows of a batch by outcome."""
        return dict(self._all("SELECT outcome, sum(n) FROM sums WHERE batch = ? GROUP BY outcome", (seq,)))

    def usage(self, seq: int) -> BilledUsage:
        """The tokens of a batch."""
        return BilledUsage(*self._all(f"SELECT {SUM_OF_TOKENS} FROM sums WHERE batch = ?", (seq,))[0])

    def add_asked(
        self, provider: str, way: BilledWay, content: bytes, model: str, usage: BilledUsage
    ) -> None:
        """Charge one real-time answer."""
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO asked (provider, way, content, model, input, cached, cache_write, output, reasoning)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (provider, way, content, model, *usage),
            )

    # -- files ---------------------------------------------------------------------------------------------------

    def add_file(self, file: StoredFile) -> None:
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO files (id, purpose, filename, bytes, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
                (file.id, file.purpose, file.filename, file.bytes, file.created_at, file.expires_at),
            )

    def file(self, file_id: str) -> StoredFile | None:
        rows = self._all(_FILE + "WHERE id = ?", (file_id,))
        return _file(rows[0]) if rows else None

    def files(self) -> list[StoredFile]:
        """All files, oldest first."""
        return [_file(row) for row in self._all(_FILE + "ORDER BY seq")]

    def delete_file(self, file_id: str) -> None:
        with self._writing() as connection:
            connection.execute("DELETE FROM files WHERE id = ?", (file_id,))

    # -- calls and faults ----------------------------------------------------------------------------------------

    def count_call(self, provider: str, endpoint: str, status: int) -> None:
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO calls VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET n = n + 1",
                (provider, endpoint, status),
            )

    def add_fault(self, document: bytes) -> int:
        with self._writing() as connection:
            number = connection.execute("INSERT INTO faults (document) VALUES (?)", (document,)).lastrowid
        assert number is not None
        return number

    def faults(self) -> list[tuple[int, bytes, int]]:
        return self._all("SELECT id, document, seen FROM faults ORDER BY id")

    def count_fault(self, fault_id: int, seen: int) -> None:
        with self._writing() as connection:
            connection.execute("UPDATE faults SET seen = ? WHERE id = ?", (seen, fault_id))

    def delete_faults(self) -> None:
        with self._writing() as connection:
            connection.execute("DELETE FROM faults")

    def wipe(self) -> None:
        """Forget everything but the clock, the knobs and the numbers already given out."""
        with self._writing() as connection:
            for table in ("batches", "charges", "sums", "asked", "files", "calls", "faults"):
                connection.execute(f"DELETE FROM {table}")


def _batch(row: Sequence[Any]) -> Batch:
    seq, batch_id, provider, phase, created_at, wake_at, facts = row
    return Batch(
        seq=seq,
        id=batch_id,
        provider=provider,
        phase=BatchPhase(phase),
        created_at=created_at,
        wake_at=wake_at,
        facts=orjson.loads(facts),
    )


def _file(row: Sequence[Any]) -> StoredFile:
    file_id, purpose, filename, size, created_at, expires_at = row
    return StoredFile(
        id=file_id,
        purpose=purpose,
        filename=filename,
        bytes=size,
        created_at=created_at,
        expires_at=expires_at,
    )
