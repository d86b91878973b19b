"""What the runs of a workspace tell each other.

    known/<provider>/<batch>      every batch that some run has recorded
    targets/<hash>/<run>.json     unfinished runs by target
    loose/<provider>/<run>.json   finished runs of which a batch may still show up
    due/<epoch>-<run>.json        finished runs whose prompts and answers are to be deleted after a time

A register is a help, never the truth about a run: that is its journal. A name that is missing costs a look, no money.
"""

import hashlib
from dataclasses import dataclass

from airflow_batch_llm.stage.folder import RunFolder, safe_name
from airflow_batch_llm.store import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Registers:
    """What runs tell each other: which batches are recorded, and which runs on a target are unfinished."""

    workspace: Workspace

    def add_known(self, provider: str, batch_id: str, run_id: str) -> None:
        self.workspace.create(f"known/{provider}/{safe_name(batch_id)}", f"{batch_id}\n{run_id}".encode())

    def known(self, provider: str) -> frozenset[str]:
        names = self.workspace.names(f"known/{provider}")
        return frozenset(names)

    def open_run(self, target: str, folder: RunFolder) -> None:
        self.workspace.create(self._open(target, folder.run_id), folder.run_id.encode())

    def close_run(self, target: str, folder: RunFolder) -> None:
        self.workspace.delete(self._open(target, folder.run_id))

    def open_runs(self, target: str) -> list[RunFolder]:
        """The unfinished runs on a target, oldest name first."""
        return self._listed(self._targets(target))

    def add_loose(self, provider: str, folder: RunFolder) -> None:
        """A creation of this run had no definite end: who plans next with the provider sweeps again."""
        self.workspace.create(self._loose(provider, folder), folder.run_id.encode())

    def loose_runs(self, provider: str) -> list[RunFolder]:
        return self._listed(f"loose/{provider}")

    def drop_loose(self, provider: str, folder: RunFolder) -> None:
        self.workspace.delete(self._loose(provider, folder))

    def _targets(self, target: str) -> str:
        return f"targets/{_short(target)}"

    def add_due(self, folder: RunFolder, at: float) -> None:
        """The payloads of this run may go at this time."""
        self.workspace.create(f"due/{int(at):012d}-{_short(folder.run_id)}.json", folder.run_id.encode())

    def take_due(self, now: float, most: int = 20) -> list[RunFolder]:
        """Some runs whose time has come, oldest first; they are no longer listed."""
        taken = []
        for name in sorted(self.workspace.names("due"))[:most]:
            if int(name.partition("-")[0]) > now:
                break
            data = self.workspace.read(f"due/{name}")
            if data is not None:
                taken.append(self._folder(data))
                self.workspace.delete(f"due/{name}")
        return taken

    def _listed(self, register: str) -> list[RunFolder]:
        found = (self.workspace.read(f"{register}/{name}") for name in sorted(self.workspace.names(register)))
        return [self._folder(data) for data in found if data is not None]

    def _folder(self, data: bytes) -> RunFolder:
        run, _, generation = data.decode().rpartition("/g")
        return RunFolder(workspace=self.workspace, run=run, generation=int(generation))

    def _loose(self, provider: str, folder: RunFolder) -> str:
        return f"loose/{provider}/{_short(folder.run_id)}.json"

    def _open(self, target: str, run_id: str) -> str:
        return f"{self._targets(target)}/{_short(run_id)}.json"


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
