"""When somebody is told that a run waits for long: once, after so much time, over all tries of the task."""

import json
from dataclasses import dataclass

from airflow_batch_llm.hooks.handle import RunHandle
from airflow_batch_llm.store import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Two records in the run folder: when the waiting began, and that somebody was told."""

    workspace: Workspace
    handle: RunHandle
    after: float

    def due_at(self, now: float) -> float:
        """When it goes off. The first to ask begins the time."""
        self.workspace.create(self._path("waiting"), json.dumps({"since": now}).encode())
        data = self.workspace.read(self._path("waiting"))
        assert data is not None, "it was created here, or before"
        return float(json.loads(data)["since"]) + self.after

    def take(self) -> bool:
        """Whether this is the one who tells."""
        return self.workspace.create(self._path("warned"), b"{}")

    def _path(self, name: str) -> str:
        return f"{self.handle.run}/{name}/{self.handle.max_tries}.json"
