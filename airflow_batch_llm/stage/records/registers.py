"""Keep the facts that the runs of a workspace share.

    .registers/known/<provider>/<batch>      every batch that some run has recorded
    .registers/targets/<hash>/<run>.json     unfinished runs by target: its database and its table
    .registers/tickets/<hash>/<number>/      the planners on a target, in their order
    .registers/loose/<provider>/<run>.json   finished runs that may still have something at the provider
    .registers/due/<epoch>-<run>.json        runs whose prompts and answers are to be deleted after a time
    .registers/ledgers/<hash>/<epoch>-<run>.json   runs that a ledger lacks, to be written after a time
    .registers/labels/<hash>.json            answers by label of the last runs on a target
    .registers/packing/<spec>-<rows>.json    whether rows agree with those asked alone, by spec and rows of a request
    .registers/watchers/<hash>.json          hashes of what an asset's watcher has reported
    .registers/measured/<spec>.json          the mean tokens of the last run with a spec
    .registers/caching/<spec>-<way>-<asked>.json   the use that the last run with a spec made of the vendor's cache

A register only saves time. The truth about a run is in its journal. A missing name costs a look, and no money.

Run folders begin with the name of a Dag, and `safe_name` never returns a name with a leading dot. A workspace of an
earlier layout has the registers at its root. No run is planned there, since nothing reads those.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import orjson

from airflow_batch_llm.core.drift import TRAILING_RUNS, LabelMix
from airflow_batch_llm.core.reservation import TicketEntry
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.stage.records.folder import RunFolder, safe_name
from airflow_batch_llm.store import Workspace

_ROOT = ".registers/"
#: The registers of the earlier layout that hold work, with the form of their names, since a Dag may have the same name.
_EARLIER = {"due": re.compile(r"[0-9]{12}-[0-9a-f]{16}\.json"), "targets": re.compile(r"[0-9a-f]{16}")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A run for which something is to be done at a time: to delete its payloads, or to write its spending."""

    name: str
    folder: RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Registers:
    """Facts that runs share: the recorded batches, and the unfinished runs on a target."""

    workspace: Workspace

    def add_known(self, provider: str, batch_id: str, run_id: str) -> None:
        self._add(f"known/{provider}/{safe_name(batch_id)}", f"{batch_id}\n{run_id}")

    def known(self, *providers: str) -> frozenset[str]:
        return frozenset(
            name for provider in providers for name in self.workspace.names(f"{_ROOT}known/{provider}")
        )

    def refuse_earlier_layout(self) -> None:
        """Raise `InputError` if the workspace has registers of the earlier layout: rows of its runs may be in flight."""
        for name in sorted(_EARLIER.keys() & set(self.workspace.names())):
            if any(map(_EARLIER[name].fullmatch, self.workspace.names(name))):
                raise InputError(
                    f"{self.workspace.uri}/{name} was written by an earlier release, and nothing reads it any more. Finish the"
                    " runs of this workspace with that release, and delete the folders due, known, loose and targets; or"
                    " use a new workspace. Nothing was sent."
                )

    def open_run(self, target: str, folder: RunFolder) -> None:
        self._add(f"{_targets(target)}/{_entry(folder)}", folder.run_id)

    def close_run(self, target: str, folder: RunFolder) -> None:
        self._drop(f"{_targets(target)}/{_entry(folder)}")

    def open_runs(self, target: str, but: RunFolder | None = None) -> list[RunFolder]:
        """Return the unfinished runs on a target except one, by the names of their entries."""
        return self._listed(_targets(target), but)

    def all_open_runs(self) -> list[RunFolder]:
        """Return the unfinished runs on all targets."""
        targets = sorted(self.workspace.names(f"{_ROOT}targets"))
        return [folder for name in targets for folder in self._listed(f"targets/{name}")]

    def put_measured(self, spec_hash: str, data: bytes, aside: Path) -> None:
        """Keep the measures of a run with a spec. The last run counts."""
        self.workspace.write(f"{_ROOT}measured/{safe_name(spec_hash)}.json", [data], aside)

    def read_measured(self, spec_hash: str) -> bytes | None:
        """Return the measures of the last run with a spec, or None."""
        return self.workspace.read(f"{_ROOT}measured/{safe_name(spec_hash)}.json")

    def put_cached(self, spec_hash: str, asked: str, data: bytes, aside: Path) -> None:
        """Keep how a run with a spec has used the vendor's cache, by how it was asked. The last run counts."""
        self.workspace.write(_caching(spec_hash, asked), [data], aside)

    def read_cached(self, spec_hash: str, asked: str) -> bytes | None:
        """Return how the last run with a spec that was asked so has used the vendor's cache, or None."""
        return self.workspace.read(_caching(spec_hash, asked))

    def add_loose(self, provider: str, folder: RunFolder) -> None:
        """Note that a batch of this run may still be at the provider, so that the next planner with the provider sweeps again."""
        self._add(f"loose/{provider}/{_entry(folder)}", folder.run_id)

    def loose_runs(self, provider: str) -> list[RunFolder]:
        return self._listed(f"loose/{provider}")

    def drop_loose(self, provider: str, folder: RunFolder) -> None:
        self._drop(f"loose/{provider}/{_entry(folder)}")

    def add_due(self, folder: RunFolder, at: float) -> None:
        """Note the time at which the payloads of this run may be deleted."""
        self._add(f"due/{int(at):012d}-{_entry(folder)}", folder.run_id)

    def due(self, now: float) -> Iterator[Due]:
        """Yield the runs whose time has come, oldest first. They stay listed until they are dropped."""
        for name in self._entries("due"):
            if int(name.partition("-")[0]) > now:
                break
            data = self.workspace.read(f"{_ROOT}due/{name}")
            if data is not None:
                yield Due(name=name, folder=self.folder(data.decode()))

    def is_registered_later(self, due: Due) -> bool:
        """Return whether the same run has a later entry."""
        run = due.name.partition("-")[2]
        return any(name > due.name for name in self._entries("due") if name.partition("-")[2] == run)

    def drop_due(self, due: Due) -> None:
        self._drop(f"due/{due.name}")

    def add_unwritten(self, book: str, folder: RunFolder, at: float) -> None:
        """Note the time from which any run may write this run to the ledger."""
        self._add(f"{_ledger(book)}/{int(at):012d}-{_entry(folder)}", folder.run_id)

    def unwritten(self, book: str, now: float) -> Iterator[Due]:
        """Yield the runs that are to be written to a ledger, the one that has waited longest first."""
        for name in self._entries(_ledger(book)):
            if int(name.partition("-")[0]) > now:
                break
            data = self.workspace.read(f"{_ROOT}{_ledger(book)}/{name}")
            if data is not None:
                yield Due(name=name, folder=self.folder(data.decode()))

    def drop_unwritten(self, book: str, folders: Sequence[RunFolder]) -> None:
        """Note that these runs are written."""
        entries = {_entry(folder) for folder in folders}
        for name in self.workspace.names(f"{_ROOT}{_ledger(book)}"):
            if name.partition("-")[2] in entries:
                self.workspace.delete(f"{_ROOT}{_ledger(book)}/{name}")

    def packing(self, spec_hash: str, rows: int) -> bytes | None:
        """Read the result of a pilot for this spec and number of rows. Returns None if there was none."""
        return self.workspace.read(_packing(spec_hash, rows))

    def add_packing(self, spec_hash: str, rows: int, found: bytes) -> None:
        """Keep the result of a pilot. The first one counts."""
        self.workspace.create(_packing(spec_hash, rows), found)

    def watermark(self, watcher: str) -> bytes | None:
        """Read a watcher's reports. Returns None if it has reported nothing."""
        return self.workspace.read(_watermark(watcher))

    def write_watermark(self, watcher: str, file: Path) -> None:
        """Replace a watcher's reports."""
        self.workspace.put(_watermark(watcher), file)

    def _add(self, path: str, content: str) -> None:
        self.workspace.create(f"{_ROOT}{path}", content.encode())

    def _drop(self, path: str) -> None:
        self.workspace.delete(f"{_ROOT}{path}")

    def _entries(self, register: str) -> list[str]:
        return sorted(self.workspace.names(f"{_ROOT}{register}"))

    def ticket(self, target: str, number: int) -> list[TicketEntry]:
        """Return the records of one ticket of a target."""
        records = self.workspace.records(self._ticket(target, number))
        return [TicketEntry.from_json(data) for _, data in records]

    def write_ticket(self, target: str, number: int, at: int, entry: TicketEntry) -> bool:
        """Create a record of a ticket. Returns whether this very record is there now."""
        folder, data = self._ticket(target, number), entry.to_json()
        if self.workspace.append(folder, data, after=at - 1) is not None:
            return True
        return any(place == at and record == data for place, record in self.workspace.records(folder))

    def settled_tickets(self, target: str) -> int:
        """Return a number up to which all tickets of a target are settled. It may be behind."""
        data = self.workspace.read(f"{self._tickets(target)}/settled.json")
        return 0 if data is None else int(data)

    def settle_tickets(self, target: str, number: int, aside: Path) -> None:
        """Note that later planners need not look at the tickets up to this one."""
        self.workspace.write(f"{self._tickets(target)}/settled.json", [str(number).encode()], aside)

    def _ticket(self, target: str, number: int) -> str:
        return f"{self._tickets(target)}/{number:06d}"

    def _tickets(self, target: str) -> str:
        return f"{_ROOT}tickets/{_short(target)}"

    def _listed(self, register: str, but: RunFolder | None = None) -> list[RunFolder]:
        names = [name for name in self._entries(register) if but is None or name != _entry(but)]
        found = (self.workspace.read(f"{_ROOT}{register}/{name}") for name in names)
        return [self.folder(data.decode()) for data in found if data is not None]

    def folder(self, run_id: str) -> RunFolder:
        """Return the run folder with this id."""
        run, _, generation = run_id.rpartition("/g")
        return RunFolder(workspace=self.workspace, run=run, generation=int(generation))


def _caching(spec_hash: str, asked: str) -> str:
    return f"{_ROOT}caching/{safe_name(spec_hash)}-{asked}.json"


def _packing(spec_hash: str, rows: int) -> str:
    return f"{_ROOT}packing/{spec_hash}-{rows}.json"


def _watermark(watcher: str) -> str:
    return f"{_ROOT}watchers/{watcher}.json"


def _ledger(book: str) -> str:
    return f"ledgers/{_short(book)}"


def _targets(target: str) -> str:
    return f"targets/{_short(target)}"


def _entry(folder: RunFolder) -> str:
    return f"{_short(folder.run_id)}.json"


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class LabelledRun(TypedDict):
    """A run and its answers by label."""

    run_id: str
    labels: LabelMix


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelHistory:
    """The label mixes of one target's runs, the newest last. Of two runs that end at once, one may be missing."""

    workspace: Workspace
    target: str
    deployment: str

    def before(self, run_id: str) -> list[LabelledRun]:
        """Return the other runs."""
        data = self.workspace.read(self._path)
        return [] if data is None else [entry for entry in orjson.loads(data) if entry["run_id"] != run_id]

    def add(self, run_id: str, labels: LabelMix, before: Sequence[LabelledRun], aside: Path) -> None:
        """Add a run to those before it, and forget the oldest ones. `aside`: a free name on the local disk."""
        kept = [*before, LabelledRun(run_id=run_id, labels=labels)][-TRAILING_RUNS:]
        self.workspace.write(self._path, [orjson.dumps(kept)], aside)

    @property
    def _path(self) -> str:
        name = f"{self.deployment}\0{self.target}"
        return f".registers/labels/{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}.json"
