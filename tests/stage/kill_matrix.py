"""A run killed at each of its points and then retried, for each provider.

    python -m tests.stage.kill_matrix [--scenario plain|routed|late|warehouse] [--minutes N] [--part K/N] [--tables] [provider …]

kills before the first verb and after every single one, which is before the next, and prints what it saw: first after
those that leave a trace, which make all the different states of the world. An undisturbed run shows that the other verbs
leave none. Or it kills after as many of them, at random, as the minutes for each provider allow. With --part, each N-th of
them from the K-th on, for N processes side by side. With --tables, Vertex reads and writes BigQuery. The suite kills after
verbs that leave a trace.
"""

import argparse
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import compress
from operator import not_
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from airflow_batch_llm.core.model import Way
from airflow_batch_llm.core.settings import Escalation, Route
from airflow_batch_llm.simulator.handle import Simulator
from tests.emulators.servers import running
from tests.stage.bigquery_world import BigQueryWorld, new_staging
from tests.stage.kills import EFFECTS, Kill
from tests.stage.processes import Ended, Job
from tests.stage.world import BUCKET, LABELS, World
from tests.store.servers import gcs_server
from tests.vendors import MODELS, OTHER_MODELS

ROWS, DISTINCT, ROWS_PER_BATCH = 24, 18, 10
#: Of the routed scenario: requests in real time, and the least confidence of an answer that stays.
URGENT, SURE = 2, 0.8
#: Columns in which two runs on the same rows differ.
OF_THE_RUN = {"_llm_run_id", "_llm_batch_id", "_llm_planned_at", "_llm_processed_at", "_llm_shard"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Two shards with duplicates, of which each ninth request fails at first: so there is a second round."""

    url: str
    provider: str
    environ: dict[str, str]
    staging: str = BUCKET

    def begun(self, folder: Path) -> World:
        """Everything from the beginning. One simulator serves one world at a time."""
        folder.mkdir()
        world = World(
            folder=folder,
            provider_name=self.provider,
            url=self.url,
            environ=self.environ,
            staging=self.staging,
        )
        world.begin()
        return world

    def world(self, folder: Path) -> World:
        """Return the world before the run."""
        world = self.begun(folder)
        world.make_tickets(ROWS, DISTINCT)
        world.simulator.fault(provider=self.provider, kind="errored", every=9, times=2)
        return world

    def changes(self) -> dict[str, Any]:
        """Return the arguments of the stage."""
        return {"rows_per_batch": ROWS_PER_BATCH}

    def judge(self, world: World, ended: Ended) -> None:
        judge(world, ended)

    def job(self, world: World, kill: Kill | None = None) -> Job:
        return Job(world=world, changes=self.changes(), kill=kill)

    def undisturbed(self, folder: Path) -> Ended:
        """The run as it goes when nobody kills it: its verbs are the points.

        Only those of `EFFECTS` leave a trace. So a worker that is killed after another verb leaves the world as it was
        after the last of those.
        """
        world = self.world(folder)
        ended = replace(self.job(world), looks=True).run()
        self.judge(world, ended)
        assert ended.traces == [], f"these left a trace: {ended.traces}"
        return ended

    def killed(self, folder: Path, kill: Kill) -> bool:
        """Kill one run and retry it; whether it came so far. Raises `AssertionError` for whatever went wrong."""
        world = self.world(folder)
        first = self.job(world, kill).run()
        assert first.killed or not first.error, first.error
        self.judge(world, self.job(world).run())
        return first.killed


class Label(BaseModel):
    label: Literal["billing", "bug", "other"]
    confidence: float = Field(ge=0, le=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed(Scenario):
    """Two urgent requests in real time beside batches, and unsure answers that a stronger model gives again."""

    def world(self, folder: Path) -> World:
        world = self.begun(folder)
        world.make_tickets(ROWS, DISTINCT)
        how = f"CASE WHEN id % {DISTINCT} < {URGENT} THEN 'urgent' END AS how"
        world.ask(f"CREATE OR REPLACE TABLE tickets AS SELECT *, {how} FROM tickets")
        shares = {MODELS[self.provider]: 0.4, OTHER_MODELS[self.provider]: 0.0}
        world.simulator.turn(wrong_share=shares, truth_find="body of [0-9]+")
        return world

    def changes(self) -> dict[str, Any]:
        strong = f"{self.provider}:{OTHER_MODELS[self.provider]}"
        return {
            "rows_per_batch": ROWS_PER_BATCH,
            "output_type": Label,
            "routes": {"urgent": Route(way="now"), "strong": Route(model_id=strong)},
            "route_column": "how",
            "escalate": [Escalation(to="strong", below={"confidence": SURE})],
        }

    def judge(self, world: World, ended: Ended) -> None:
        strong = ended.report["routes"]["strong"]["requests"] if not ended.error else 0
        judge_by_way(world, ended, DISTINCT + strong)
        low = f"SELECT count(*) FROM labels WHERE _llm_route <> 'strong' AND confidence < {SURE}"
        assert (0 < strong < DISTINCT, world.ask(low)) == (True, [(0,)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Late(Scenario):
    """A batch that hangs until the time is nearly over, and is cancelled then. Its open rows are asked in real time."""

    def world(self, folder: Path) -> World:
        world = self.begun(folder)
        world.make_tickets(ROWS, DISTINCT)
        world.simulator.turn(batch_seconds=600, cancelled_share=0.5)
        world.simulator.fault(provider=self.provider, kind="hold")
        return world

    def changes(self) -> dict[str, Any]:
        return {
            "rows_per_batch": ROWS_PER_BATCH,
            "routes": {"urgent": Route(way="now")},
            "escalate": [Escalation(to="urgent", left=3600)],
            "timeout": 8 * 3600,
        }

    def judge(self, world: World, ended: Ended) -> None:
        judge_by_way(world, ended, DISTINCT)


@dataclass(frozen=True, slots=True, kw_only=True)
class InWarehouse(Scenario):
    """A run of two shards whose rows stay in BigQuery. It has one round, so no request fails."""

    def begun(self, folder: Path) -> World:
        folder.mkdir()
        world = BigQueryWorld(
            folder=folder,
            provider_name=self.provider,
            url=self.url,
            environ=self.environ,
            staging=new_staging(self.environ["BIGQUERY_EMULATOR_HOST"]),
        )
        world.begin()
        return world

    def world(self, folder: Path) -> World:
        world = self.begun(folder)
        world.make_tickets(ROWS, DISTINCT)
        return world

    def changes(self) -> dict[str, Any]:
        return {"rows_per_batch": ROWS_PER_BATCH, "execution": "warehouse"}

    def judge(self, world: World, ended: Ended) -> None:
        """As ever, and the target holds what the first run that was judged has left: the undisturbed one.

        The tables that a killed worker has left vanish by themselves.
        """
        judge(world, ended)
        assert isinstance(world, BigQueryWorld)
        assert world.tables(lasting=True) == {"labels", "labels__failures", "tickets"}
        rows = world.rows("SELECT * FROM labels ORDER BY id")
        left = repr([{k: v for k, v in row.items() if k not in OF_THE_RUN} for row in rows])
        first = world.folder.parent / "undisturbed"
        if not first.exists():
            first.write_text(left)
        assert left == first.read_text()


SCENARIOS = {"plain": Scenario, "routed": Routed, "late": Late, "warehouse": InWarehouse}


def judge(world: World, ended: Ended) -> None:
    """Each request charged once, each row answered once, nothing left behind, nobody had to step in."""
    assert not ended.error, ended.error
    ledger = world.ledger()
    shares = "sum(CASE WHEN _llm_shared THEN 1 ELSE 0 END)"
    ((shared, cost),) = world.ask(f"SELECT {shares}, sum(_llm_cost_usd) FROM labels")
    answers = world.answers()
    seen = {
        "running": ledger["running"],
        "charged": ledger["rows"]["charged"],
        "charged twice": ledger["duplicates"]["surplus_charges"],
        "answered": sorted(answers),
        "not a label": set(answers.values()) - set(LABELS),
        "failures": world.failures(),
        "shared": shared,
        "dollars": round(cost, 9),
        "passed": ended.report["passed"],
        "unfinished runs": world.unfinished(),
        "left on the worker": ended.left_behind,
        "left at the vendor": world.uploads(),
    }
    assert seen == {
        "running": [],
        "charged": DISTINCT,
        "charged twice": 0,
        "answered": list(range(ROWS)),
        "not a label": set(),
        "failures": {},
        "shared": ROWS - DISTINCT,
        "dollars": round(ended.report["spent"]["cost"], 9),
        "passed": True,
        "unfinished runs": [],
        "left on the worker": [],
        "left at the vendor": [],
    }, seen


def judge_by_way(world: World, ended: Ended, requests: int) -> None:
    """No request is charged twice in batches, each row is answered once, and the bill is the ledger's.

    A worker that dies while it asks in real time may leave requests that are paid again. The report counts them.
    """
    assert not ended.error, ended.error
    ledger, routes = world.ledger(), ended.report["routes"]
    batched = world.simulator.charges(provider=world.provider_name, way="batch")
    contents = [row["content"] for row in batched if row["charged"]]
    seen = {
        "running": ledger["running"],
        "charged twice in batches": len(contents) - len(set(contents)),
        "dollars in batches": round(world.billed(Way.BATCH), 9),
        "answered": sorted(world.answers()),
        "failures": world.failures(),
        "passed": ended.report["passed"],
        "unfinished runs": world.unfinished(),
        "left on the worker": ended.left_behind,
        "left at the vendor": world.uploads(),
    }
    assert seen == {
        "running": [],
        "charged twice in batches": 0,
        "dollars in batches": round(sum(one["cost"] for name, one in routes.items() if name != "urgent"), 9),
        "answered": list(range(ROWS)),
        "failures": {},
        "passed": True,
        "unfinished runs": [],
        "left on the worker": [],
        "left at the vendor": [],
    }, seen
    spare = ledger["rows"]["charged"] - requests
    assert 0 <= spare <= ended.report["maybe_twice"], (spare, ended.report["maybe_twice"])
    if not spare:
        assert round(world.billed(Way.NOW), 9) == round(routes["urgent"]["cost"], 9)


def points(verbs: Sequence[str], *, every: bool) -> Iterator[Kill]:
    """The points after which the world is another one than before, and then all other ones."""
    kills = [
        Kill(number, after=True, call=(verb, verbs[:number].count(verb)))
        for number, verb in enumerate(verbs, start=1)
    ]
    leaves_trace = [verb.rpartition(".")[2] in EFFECTS for verb in verbs]
    yield from compress(kills, leaves_trace)
    if every:
        yield Kill(1, after=False)
        yield from compress(kills, map(not_, leaves_trace))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """A place where Vertex reads and writes: the simulator's options, the adapter's environment and its `staging`."""

    options: dict[str, str]
    environ: dict[str, str]
    staging: str = BUCKET

    @classmethod
    def files(cls, url: str) -> "Stores":
        return cls(options={"storage_url": url}, environ={"STORAGE_EMULATOR_HOST": url})

    @classmethod
    def tables(cls, url: str) -> "Stores":
        """In a new dataset, which goes with its emulator."""
        environ = {"BIGQUERY_EMULATOR_HOST": url}
        return cls(options={"bigquery_url": url}, environ=environ, staging=new_staging(url))


@contextmanager
def stores(scratch: Path, *, tables: bool) -> Iterator[Stores]:
    if tables:
        with running() as emulators:
            yield Stores.tables(emulators.bigquery)
    else:
        (scratch / "gcs").mkdir()
        with gcs_server(scratch / "gcs") as url:
            yield Stores.files(url)


def main(
    kind: type[Scenario],
    providers: list[str],
    minutes: float = math.inf,
    *,
    tables: bool = False,
    part: str = "1/1",
) -> int:
    failed = 0
    first, parts = map(int, part.split("/"))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kill-matrix-")))
        store = stack.enter_context(stores(scratch, tables=tables))
        simulator = stack.enter_context(Simulator(batch_seconds=0, **store.options))
        for provider in providers:
            began = time.monotonic()
            environ = store.environ if provider == "vertex" else {}
            scenario = kind(url=simulator.url, provider=provider, environ=environ, staging=store.staging)
            verbs = scenario.undisturbed(scratch / f"{provider}-0").verbs
            kills = list(points(verbs, every=True))[first - 1 :: parts]
            if minutes < math.inf:
                random.shuffle(kills)
            done = reached = 0
            for number, kill in enumerate(kills, start=1):
                if time.monotonic() - began > minutes * 60:
                    break
                done = number
                try:
                    reached += scenario.killed(scratch / f"{provider}-{number}", kill)
                except AssertionError as error:
                    failed += 1
                    when = "after" if kill.after else "before"
                    print(
                        f"{provider}: killed {when} {kill.point} {verbs[kill.point - 1]}: {error}", flush=True
                    )
            seconds = time.monotonic() - began
            print(
                f"{provider}: {len(verbs)} verbs, {done} of {len(kills)} kills ({reached} reached), {seconds:.0f} s",
                flush=True,
            )
    print(f"{failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("provider", nargs="*")
    parser.add_argument("--scenario", default="plain", choices=SCENARIOS)
    parser.add_argument("--minutes", default=math.inf, type=float)
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--tables", action="store_true")
    wanted = parser.parse_args()
    chosen = wanted.provider or (["vertex"] if wanted.tables else list(MODELS))
    sys.exit(main(SCENARIOS[wanted.scenario], chosen, wanted.minutes, tables=wanted.tables, part=wanted.part))
