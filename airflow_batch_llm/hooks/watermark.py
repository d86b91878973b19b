"""Keep in the workspace what a watcher has reported, so that the next triggerer goes on from there."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from airflow_batch_llm.core.request import canonical, digest
from airflow_batch_llm.hooks.arguments import deployment

if TYPE_CHECKING:
    from airflow_batch_llm.stage.records.registers import Registers


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
