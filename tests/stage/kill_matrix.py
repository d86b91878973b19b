"""A run killed at each of its points and then retried, for each provider.

    python -m tests.stage.kill_matrix [provider …]

kills before and after every single verb and prints what it saw. The suite kills after every verb that leaves a
trace: these are all the different states in which a killed process can leave the world.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from airflow_batch_llm.simulator.handle import Simulator
from tests.stage.kills import EFFECTS, Kill
from tests.stage.processes import Ended, Job
from tests.stage.world import LABELS, World
from tests.store.servers import gcs_server
from tests.vendors import MODELS

ROWS, DISTINCT, ROWS_PER_BATCH = 24, 18, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Two shards with duplicates, of which each ninth request fails at first: so there is a second round."""

    url: str
    provider: str
    environ: dict[str, str]

    def world(self, folder: Path) -> World:
        """Everything from the beginning. One simulator serves one world at a time."""
        folder.mkdir()
        world = World(folder=folder, provider_name=self.provider, url=self.url, environ=self.environ)
        world.begin()
        world.make_tickets(ROWS, DISTINCT)
        world.simulator.fault(provider=self.provider, kind="errored", every=9, times=2)
        return world

    def job(self, world: World, kill: Kill | None = None) -> Job:
        return Job(world=world, changes={"rows_per_batch": ROWS_PER_BATCH}, kill=kill)

    def undisturbed(self, folder: Path) -> Ended:
        """The run as it goes when nobody kills it: its verbs are the points."""
        world = self.world(folder)
        ended = self.job(world).run()
        judge(world, ended)
        return ended

    def killed(self, folder: Path, kill: Kill) -> bool:
        """Kill one run and retry it; whether it came so far. Raises `AssertionError` for whatever went wrong."""
        world = self.world(folder)
        first = self.job(world, kill).run()
        assert first.killed or not first.error, first.error
        judge(world, self.job(world).run())
        return first.killed


def judge(world: World, ended: Ended) -> None:
    """Each request charged once, each row answered once, nothing left behind, nobody had to step in."""
    assert not ended.error, ended.error
    ledger = world.ledger()
    ((shared, cost),) = world.ask("SELECT count(*) FILTER (_llm_shared), sum(_llm_cost_usd) FROM labels")
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
    }, seen


def points(verbs: Sequence[str], *, every: bool) -> Iterator[Kill]:
    """All points of a run, or those after which the world is another one than before."""
    for number, verb in enumerate(verbs, start=1):
        if every:
            yield Kill(number, after=False)
        if every or verb.rpartition(".")[2] in EFFECTS:
            yield Kill(number, after=True)


def main(providers: list[str]) -> int:
    failed = 0
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kill-matrix-")))
        (scratch / "gcs").mkdir()
        storage = stack.enter_context(gcs_server(scratch / "gcs"))
        simulator = stack.enter_context(Simulator(batch_seconds=0, storage_url=storage))
        for provider in providers:
            began = time.monotonic()
            environ = {"STORAGE_EMULATOR_HOST": storage} if provider == "vertex" else {}
            scenario = Scenario(url=simulator.url, provider=provider, environ=environ)
            verbs = scenario.undisturbed(scratch / f"{provider}-0").verbs
            kills = list(points(verbs, every=True))
            reached = 0
            for number, kill in enumerate(kills, start=1):
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
                f"{provider}: {len(verbs)} verbs, {len(kills)} kills ({reached} reached), {seconds:.0f} s",
                flush=True,
            )
    print(f"{failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(MODELS)))
