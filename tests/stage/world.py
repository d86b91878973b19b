"""A small world for one stage: a table of tickets in DuckDB, a provider on loopback, and a clock that is moved.

A world is plain data, so that a fresh process can take a run up where a killed one left it. Time is the machine's
plus an offset that lives in a file; a process that sleeps moves that offset and the simulator's clock alike, so that a
lease or a day passes in no time.
"""

import fcntl
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import fsum
from pathlib import Path
from time import sleep as real_sleep
from time import time as real_time
from typing import Any
from urllib.parse import quote

import duckdb
import httpx

from airflow_batch_llm.core.model import Usage, Way
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.settings import Guards, Pace, Request, Shape, Source, Stage
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access, Provider
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.stage.drive import complete
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.standings import read_plans
from airflow_batch_llm.stage.run import Pause, Run
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse
from tests.vendors import VENDORS

LABELS = ("billing", "bug", "other")

#: Where Vertex reads and writes, if nothing else is said.
BUCKET = "gs://bucket/staging"

_HURRY, _STEP_SECONDS = 50.0, 2.0

_connected: list[Provider] = []  # and perhaps not closed: not each test ends its runs


@dataclass(frozen=True, slots=True)
class MovedClock:
    """Seconds since the epoch, ahead of the machine's by what the file says."""

    path: Path

    def __call__(self) -> float:
        return real_time() + self._offset()

    def set_ahead(self, offset: float) -> None:
        """Move to this offset; another process may be further ahead already."""
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if offset > self._offset():
                temporary = self.path.with_suffix(f".{os.getpid()}")
                temporary.write_bytes(struct.pack("d", offset))
                temporary.replace(self.path)

    def _offset(self) -> float:
        data = self.path.read_bytes() if self.path.exists() else b""
        return struct.unpack("d", data)[0] if len(data) == 8 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The folders and addresses of everything. Nothing is open."""

    folder: Path
    provider_name: str
    url: str
    environ: Mapping[str, str] = field(default_factory=dict)
    staging: str = BUCKET

    # -- the clock -----------------------------------------------------------------------------------------------

    @property
    def clock(self) -> MovedClock:
        return MovedClock(self.folder / "clock")

    @property
    def simulator(self) -> Simulator:
        """The simulator's control, from any process."""
        handle = Simulator()
        handle.url = self.url
        return handle

    def sleep(self, seconds: float) -> None:
        """Let time pass here and at the provider."""
        now = self.simulator.clock(advance_seconds=seconds, settle=True)
        self.clock.set_ahead(now - real_time())

    def sleep_evenly(self, seconds: float) -> None:
        """The same in small steps, fifty times as fast as life: for processes that live at the same time.

        A jump would be a pause of all the others, and longer than their leases.
        """
        end = self.clock() + seconds
        while self.clock() < end:
            real_sleep(_STEP_SECONDS / _HURRY)
            self.sleep(_STEP_SECONDS)

    def begin(self) -> None:
        """Forget what was at the provider; a simulator's clock does not go back, so this one follows it."""
        self.simulator.reset()
        self.sleep(0.0)

    # -- the parts -----------------------------------------------------------------------------------------------

    @property
    def database(self) -> Path:
        return self.folder / "warehouse.duckdb"

    @property
    def model(self) -> str:
        return VENDORS[self.provider_name].model

    def provider(self) -> Provider:
        os.environ.update(self.environ)
        options = {"project": "test-project", "location": "global", "staging": self.staging}
        base_url = VENDORS[self.provider_name].base_url(self.url)
        access = Access(api_key="any", base_url=base_url, options=options if self.environ else {})
        _connected.append(connect(self.provider_name, access))
        return _connected[-1]

    def workspace(self) -> Workspace:
        return Workspace.open(str(self.folder / "workspace"))

    def parts(self, **changes: Any) -> Parts:
        warehouse = DuckDBWarehouse(self.database)
        parts = Parts(
            provider=self.provider(),
            source=warehouse,
            target=warehouse,
            workspace=self.workspace(),
            spool=self.folder / "spool",
            clock=self.clock,
            sleep=self.sleep,
        )
        return replace(parts, **changes)

    # -- the tables ----------------------------------------------------------------------------------------------

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the database, while nobody else does."""
        with duckdb.connect(str(self.database)) as connection:
            return connection.execute(sql).fetchall()

    def make_tickets(self, rows: int, distinct: int | None = None) -> None:
        """Rows whose texts repeat after `distinct` of them."""
        self.ask(
            "CREATE OR REPLACE TABLE tickets AS SELECT i AS id, "
            f"'subject ' || (i % {distinct or rows}) AS subject, 'body of ' || (i % {distinct or rows}) AS body "
            f"FROM range({rows}) t(i)"
        )

    def answers(self) -> dict[int, str]:
        """The target's labels by key; each key once."""
        rows = self.ask("SELECT id, label FROM labels ORDER BY id")
        assert len({key for key, _ in rows}) == len(rows), "a key stands twice in the target"
        return dict(rows)

    def failures(self) -> dict[int, tuple[str, int, bool]]:
        """Outcome, attempts and whether dead, by key."""
        rows = self.ask("SELECT id, _llm_outcome, _llm_attempts, _llm_dead FROM labels__failures ORDER BY id")
        assert len({row[0] for row in rows}) == len(rows), "a key stands twice in the failures"
        return {key: (outcome, attempts, dead) for key, outcome, attempts, dead in rows}

    def unfinished(self) -> list[str]:
        """The runs that the workspace lists as unfinished."""
        names = self.workspace().names
        return [
            run for target in names(".registers/targets") for run in names(f".registers/targets/{target}")
        ]

    def uploads(self, run: str = "dag/task/run") -> list[str]:
        """The uploaded requests that the journals of a run name and the vendor still has."""
        folder = RunFolder(workspace=self.workspace(), run=run)
        entries = (
            entry
            for plan in read_plans(folder)
            for shard in plan.shards
            for entry in folder.journal(shard.number)
        )
        return sorted(
            upload for upload in {entry.upload for entry in entries} if upload and self._has(upload)
        )

    def seen(self) -> dict[str, Any]:
        """Return the world as another process finds it: what is stored, and the batches that were ever created."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and ".tmp-" not in path.name]
        kept = [path for path in files if path.parts[len(self.folder.parts)] not in ("spool", "clock")]
        stored = {str(path): sha256(path.read_bytes()).hexdigest() for path in kept}
        return stored | {"batches": self.ledger()["batches"]}

    def _has(self, upload: str) -> bool:
        scheme, _, name = upload.rpartition("://")
        if scheme == "gs":
            bucket, _, blob = name.partition("/")
            url = f"{self.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b/{bucket}/o/{quote(blob, safe='')}"
        elif scheme == "bq":
            project, dataset, table = name.split(".")
            where = f"projects/{project}/datasets/{dataset}/tables/{table}"
            url = f"{self.environ['BIGQUERY_EMULATOR_HOST']}/bigquery/v2/{where}"
        else:
            url = f"{self.url}/v1/files/{name}"
        answer = httpx.get(url, headers={"Authorization": "Bearer any"})
        assert answer.status_code in (200, 404), answer.text
        return answer.status_code == 200

    # -- the ledger ----------------------------------------------------------------------------------------------

    def ledger(self) -> dict[str, Any]:
        return self.simulator.ledger()[self.provider_name]  # type: ignore[no-any-return]

    def charged(self) -> int:
        return int(self.ledger()["rows"]["charged"])

    def billed(self, way: Way) -> float:
        """Return the dollars for what the vendor charges by one way, row by row: a long one may cost more a token."""
        prices: dict[str, PriceList] = {}
        costs = []
        for row in self.simulator.charges(provider=self.provider_name, way=way):
            if row["charged"]:
                model = row["model"]
                if model not in prices:
                    prices[model] = PriceList.of(self.provider_name, model, at=real_time()).by(way)
                usage = Usage(row["input"], row["cached"], row["cache_write"], row["output"])
                costs.append(float(prices[model].cost(usage) or 0))
        return fsum(costs)


def stage(world: World, **changes: Any) -> Stage:
    """Labels for tickets. `changes` go to whichever of the stage's settings bears the name."""
    groups: dict[type, dict[str, Any]] = {Request: {}, Shape: {}, Guards: {}, Pace: {}, Stage: {}}
    for name, value in changes.items():
        (group,) = [kind for kind in groups if name in kind.__dataclass_fields__]
        groups[group][name] = value
    asked: dict[str, Any] = {"prompt": "Subject: {{ subject }}\n{{ body }}", "output_type": list(LABELS)}
    if "prompt_file" in changes:
        del asked["prompt"]
    return Stage(
        **{
            "source": Source(table="tickets"),
            "key": ("id",),
            "model_id": f"{world.provider_name}:{world.model}",
            "target": "labels",
            **asked,
            "request": Request(**groups[Request]),
            "shape": Shape(**{"carry": ("subject",), **groups[Shape]}),
            "guards": Guards(**groups[Guards]),
            "pace": Pace(**groups[Pace]),
            **groups[Stage],
        }
    )


@dataclass(slots=True)
class Bench:
    """Drives runs in one world, in this process."""

    world: World
    said: list[str] = field(default_factory=list)
    workspace: Workspace | None = None  # instead of the world's own

    def run(self, name: str = "dag/task/run", *, max_tries: int = 0, parts: Mapping[str, Any] | None = None,
            **changes: Any) -> Run:  # fmt: skip
        own = {} if self.workspace is None else {"workspace": self.workspace}
        return Run(
            stage=stage(self.world, **changes),
            parts=self.world.parts(log=self.said.append, **own, **(parts or {})),
            name=name,
            max_tries=max_tries,
        )

    def complete(
        self,
        run: Run | str = "dag/task/run",
        *,
        on_pause: Callable[[Pause], None] | None = None,
        **changes: Any,
    ) -> Finished:
        """Drive a run to its end and let everything go."""
        run = self.run(run, **changes) if isinstance(run, str) else run
        try:
            return complete(run, sleep=self.world.sleep, on_pause=on_pause)
        finally:
            let_go(run)

    def advance(self, run: Run | str = "dag/task/run", **changes: Any) -> Pause | Finished:
        """One step of a run."""
        run = self.run(run, **changes) if isinstance(run, str) else run
        try:
            return run.advance()
        finally:
            let_go(run)

    def fault(self, **fault: Any) -> None:
        self.world.simulator.fault(**{"provider": self.world.provider_name, **fault})

    def asked(self) -> list[str]:
        """The custom_ids of all rows that were ever sent to the provider and looked at."""
        charges = self.world.simulator.charges(provider=self.world.provider_name)
        return [charge["custom_id"] for charge in charges]

    def batches(self) -> Sequence[str]:
        return self.world.ledger()["batches"]  # type: ignore[no-any-return]


def close_providers() -> None:
    """Close the connections of all providers that this process has had."""
    while _connected:
        _connected.pop().close()


def let_go(run: Run) -> None:
    """Close what a run has opened."""
    run.parts.target.close()
    run.parts.provider.close()
