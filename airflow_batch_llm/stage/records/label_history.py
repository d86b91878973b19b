"""The label mixes of the last runs on a target, in one small file of the workspace.

It is a help for warnings, never the truth about a run: that is its report. Of two runs that end at once, one may be missing.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from airflow_batch_llm.core.drift import TRAILING_RUNS, LabelMix
from airflow_batch_llm.store import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelHistory:
    """The mixes of one target's runs, the newest last."""

    workspace: Workspace
    target: str
    deployment: str

    def before(self, run_id: str) -> list[LabelMix]:
        """Return the mixes of the other runs."""
        return [entry["labels"] for entry in self._entries() if entry["run_id"] != run_id]

    def add(self, run_id: str, labels: LabelMix, aside: Path) -> None:
        """Add a run, and forget the oldest ones. `aside`: a free name on the local disk."""
        others = [entry for entry in self._entries() if entry["run_id"] != run_id]
        kept = [*others, {"run_id": run_id, "labels": labels}][-TRAILING_RUNS:]
        self.workspace.write(self._path, [orjson.dumps(kept)], aside)

    def _entries(self) -> list[Mapping[str, Any]]:
        data = self.workspace.read(self._path)
        return [] if data is None else orjson.loads(data)

    @property
    def _path(self) -> str:
        name = f"{self.deployment}\0{self.target}"
        return f".registers/labels/{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}.json"
