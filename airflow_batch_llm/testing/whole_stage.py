"""A whole stage on a warehouse under test: the simulator answers, and time is moved, not waited for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import time as real_time
from typing import Any

from airflow_batch_llm.core.settings import Guards, Only, Shape, Source, Stage
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.stage.drive import complete
from airflow_batch_llm.stage.land.finishing import Finished, land_again
from airflow_batch_llm.stage.parts import Parts, ReadsSource
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.run import Run
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.base import Warehouse

#: Where the answers land.
TARGET = "answers"


@dataclass(slots=True, kw_only=True)
class WholeStage:
    """Runs of one stage against OpenAI's wire protocol. `open` gives a new adapter, which each step closes."""

    simulator: Simulator
    folder: Path
    open: Callable[[], Warehouse]
    source: Source
    key: tuple[str, ...]
    carry: tuple[str, ...] = ()
    prompt: str = "{{ body }}"
    guards: Guards = field(default_factory=lambda: Guards(min_success_ratio=0))
    only: Only = Only.CHANGED
    files: ReadsSource | None = None  # what the source is read from; None: the warehouse
    _ahead: float = field(default=0.0, init=False)

    def complete(self, name: str, **changes: Any) -> Finished:
        """Drive a run to its end."""
        with self._run(name, **changes) as run:
            return complete(run, sleep=self._sleep)

    def advance(self, name: str, **changes: Any) -> object:
        """Take one step of a run."""
        with self._run(name, **changes) as run:
            return run.advance()

    def land_again(self, name: str) -> int:
        """Merge the answers of a finished run once more; returns how many there are."""
        with self._run(name) as run:
            workspace = run.parts.workspace
            return land_again(run.parts, RunFolder(workspace=workspace, run=name, generation=1))

    @contextmanager
    def _run(self, name: str, source: Source | None = None) -> Iterator[Run]:
        target = self.open()
        provider = connect("openai", Access(api_key="any", base_url=self.simulator.openai_url))
        parts = Parts(
            provider=provider,
            source=self.files or target,
            target=target,
            workspace=Workspace.open(str(self.folder / "workspace")),
            spool=self.folder / "spool",
            clock=lambda: real_time() + self._ahead,
        )
        stage = Stage(
            source=source or self.source,
            key=self.key,
            model_id="openai:gpt-5-mini",
            prompt=self.prompt,
            output_type=["billing", "bug"],
            target=TARGET,
            shape=Shape(carry=self.carry),
            only=self.only,
            guards=self.guards,
        )
        try:
            yield Run(stage=stage, parts=parts, name=name)
        finally:
            target.close()
            provider.close()

    def _sleep(self, seconds: float) -> None:
        self._ahead = self.simulator.clock(advance_seconds=seconds, settle=True) - real_time()
