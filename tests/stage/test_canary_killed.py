"""A worker killed around the canary and its verdict, and retried: the same verdict, and no row is paid twice."""

from dataclasses import replace
from pathlib import Path

import pytest

from airflow_batch_llm.core.settings import Canary
from airflow_batch_llm.stage.records.folder import RunFolder
from tests.stage.kills import EFFECTS, Kill
from tests.stage.processes import Job
from tests.stage.world import Bench, World

ROWS, SIZE = 40, 10


def fresh(bench: Bench, folder: Path) -> Bench:
    """Return a fresh world. One simulator serves one world at a time."""
    folder.mkdir()
    world = replace(bench.world, folder=folder)
    world.begin()
    world.make_tickets(ROWS)
    return Bench(world)


def around_the_verdict(verbs: list[str]) -> list[int]:
    """Return the verbs that leave a trace, from the record of the canary's results to those after its verdict."""
    traces = [number for number, verb in enumerate(verbs, start=1) if verb.rpartition(".")[2] in EFFECTS]
    merge = traces.index(verbs.index("warehouse.publish") + 1)
    return traces[merge - 2 : merge + 5]


@pytest.mark.parametrize(("way", "is_good"), [("now", True), ("batch", True), ("now", False)])
def test_every_attempt_follows_one_verdict_and_pays_no_row_twice(
    openai: Bench, tmp_path: Path, way: str, is_good: bool
) -> None:
    changes = {"canary": Canary(rows=SIZE, way=way), "max_tokens": 1024 if is_good else 1}  # type: ignore[arg-type]
    bench = fresh(openai, tmp_path / "undisturbed")
    verbs = Job(world=bench.world, changes=changes).run().verbs
    for number in around_the_verdict(verbs):
        bench = fresh(openai, tmp_path / str(number))
        first = Job(world=bench.world, changes=changes, kill=Kill(number, after=True)).run()
        assert first.killed, verbs[number - 1]
        before = _verdict(bench.world)
        ended = Job(world=bench.world, changes=changes).run()

        assert not ended.error, ended.error
        where = (number, verbs[number - 1])
        report, paid = ended.report, bench.world.charged()
        assert before in (None, _verdict(bench.world)), where
        assert report["canary"]["ruling"] == ("go" if is_good else "bad_answers"), where
        wanted = ROWS if is_good else SIZE
        assert wanted <= paid <= wanted + (report["maybe_twice"] if way == "now" else 0), (where, paid)
        assert len(bench.world.answers()) == (ROWS if is_good else 0), where
        assert bench.world.unfinished() == [], where


def _verdict(world: World) -> bytes | None:
    return RunFolder(workspace=world.workspace(), run="dag/task/run").read_canary()
