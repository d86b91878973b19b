"""The simulator's parts, put together once and handed to everything that answers calls."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_batch_llm.simulator.controls import (
    BatchFault,
    Clock,
    FaultBook,
    Knobs,
    SimulatorSettings,
    batch_fault,
)
from airflow_batch_llm.simulator.database import Batch, BatchPhase, Database, RowFate, StoredFile
from airflow_batch_llm.simulator.meters import Billing, PrefixCache, RateLimits
from airflow_batch_llm.simulator.request import Medium
from airflow_batch_llm.simulator.responder import Responder, load_responder

_WAITING_SHARE = 0.1  # of a batch's duration, before its rows are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStore:
    """The files that vendors keep for their users. A file is gone when it was deleted, and when it expires."""

    folder: Path
    database: Database
    clock: Clock

    def keep(self, path: Path, file: StoredFile) -> StoredFile:
        """Take over a file that has arrived."""
        path.rename(self.path(file.id))
        self.database.add_file(file)
        return file

    def path(self, file_id: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / file_id

    def find(self, file_id: str) -> StoredFile | None:
        """Return the file, unless it was deleted or has expired."""
        file = self.database.file(file_id)
        if file is None or (file.expires_at is not None and file.expires_at <= self.clock.now()):
            return None
        return file

    def kept(self, purposes: Callable[[str], bool]) -> list[StoredFile]:
        """Return the files that are kept for some purposes, oldest first."""
        return [file for file in self.database.files() if purposes(file.purpose) and self.find(file.id)]

    def delete(self, file_id: str) -> None:
        self.database.delete_file(file_id)
        self.path(file_id).unlink(missing_ok=True)

    def medium(self, file_id: object) -> Medium:
        """Return the image or PDF that a request names. Raises ValueError if no request may name it."""
        file = self.find(str(file_id))
        if file is None or file.purpose not in ATTACHED:
            raise ValueError(f"there is no file {file_id} for requests")
        return Medium.of(self.path(file.id).read_bytes())


#: Purposes of files that requests may name.
ANTHROPIC_FILE = "anthropic"
ATTACHED = frozenset({ANTHROPIC_FILE, "user_data", "vision", "assistants"})


@dataclass(slots=True, kw_only=True)
class World:
    """The state that all calls share. `knobs` is replaced whole; `poke` wakes the runner."""

    settings: SimulatorSettings
    clock: Clock
    database: Database
    faults: FaultBook
    responder: Responder
    instance: str
    knobs: Knobs
    limits: RateLimits = field(default_factory=RateLimits)
    prefixes: PrefixCache = field(default_factory=PrefixCache)
    poke: Callable[[], None] = field(default=lambda: None)

    @property
    def files(self) -> FileStore:
        return FileStore(folder=self.settings.data_dir / "files", database=self.database, clock=self.clock)

    @property
    def billing(self) -> Billing:
        """Return what decides the bill of an answer that is made now."""
        return Billing(knobs=self.knobs, prefixes=self.prefixes, now=self.clock.now())

    def turn(self, knobs: Knobs) -> None:
        self.knobs = knobs
        self.database.set_meta("knobs", knobs.model_dump())

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.set_ahead(self.clock.offset)
        self.poke()

    def set_ahead(self, seconds: float) -> None:
        """Set the clock so far ahead of the machine's."""
        self.clock.offset = seconds
        self.database.set_meta("offset", seconds)

    def folder(self, batch_id: str) -> Path:
        """Return the folder of a batch's lines."""
        folder = self.settings.data_dir / "batches" / batch_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def scratch(self) -> Path:
        """Return a name for a file that is being received."""
        folder = self.settings.data_dir / "incoming"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / secrets.token_hex(8)

    def open_batch(self, provider: str, batch_id: str, phase: BatchPhase, facts: dict[str, Any]) -> Batch:
        """Record a new batch, with the faults that are set for it; `facts` must hold its `window` in seconds."""
        now = self.clock.now()
        faults = [
            fault.model_dump(mode="json", exclude_defaults=True) for fault in self.faults.for_batch(provider)
        ]
        slow = batch_fault(faults, BatchFault.SECONDS)
        seconds = slow.seconds if slow else self.knobs.batch_seconds
        ends_at = None if batch_fault(faults, BatchFault.HOLD) else now + seconds
        expires_at = now + facts["window"]
        first = min(ends_at or expires_at, expires_at)
        if phase is BatchPhase.ACCEPTED:
            queued = batch_fault(faults, BatchFault.QUEUE)
            first = expires_at if queued else now + seconds * _WAITING_SHARE
        common: dict[str, Any] = {"faults": faults, "ends_at": ends_at, "expires_at": expires_at}
        if expiring := batch_fault(faults, BatchFault.EXPIRE):
            common["ending"] = {"outcome": RowFate.EXPIRED, "share": expiring.share}
        if failing := batch_fault(faults, BatchFault.FAIL):
            common["ending"] = {"outcome": RowFate.CANCELED, "share": failing.share}
        batch = self.database.add_batch(
            Batch(
                seq=0,
                id=batch_id,
                provider=provider,
                phase=phase,
                created_at=now,
                wake_at=first,
                facts={**facts, **common},
            )
        )
        self.poke()
        return batch

    def cancel(self, batch: Batch) -> Batch:
        """Ask a batch to stop, which takes a quarter of the usual duration. One that has ended stays as it is."""
        if batch.phase not in (BatchPhase.ACCEPTED, BatchPhase.RUNNING):
            return batch
        now = self.clock.now()
        changed = self.database.change_batch(
            batch.id,
            BatchPhase.CANCELING,
            now + self.knobs.batch_seconds / 4,
            canceling_at=now,
            ending={"outcome": RowFate.CANCELED, "share": self.knobs.cancelled_share},
        )
        self.poke()
        return changed


def open_world(settings: SimulatorSettings) -> World:
    """Take up the data directory as it was left."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(settings.data_dir / "simulator.sqlite")
    instance = database.get_meta("instance")
    if instance is None:
        instance = f"{secrets.randbelow(10**8):08d}"
        database.set_meta("instance", instance)
    knobs = Knobs.model_validate(database.get_meta("knobs") or {})
    if settings.batch_seconds is not None:
        knobs = knobs.model_copy(update={"batch_seconds": settings.batch_seconds})
    world = World(
        settings=settings,
        clock=Clock(database.get_meta("offset") or 0.0),
        database=database,
        faults=FaultBook(database),
        responder=load_responder(settings, lambda: world.knobs),
        instance=instance,
        knobs=knobs,
    )
    return world
