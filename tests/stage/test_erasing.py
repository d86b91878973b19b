"""One person's rows are taken out of a workspace, and nothing else is."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.errors import StoreUnavailable
from airflow_batch_llm.stage.erasing import ErasedRun, Erasure, Options
from airflow_batch_llm.stage.inspection import inspect
from airflow_batch_llm.stage.land.finishing import land_again
from airflow_batch_llm.stage.person import Person
from airflow_batch_llm.stage.plan.planning import Planner
from airflow_batch_llm.stage.records.folder import RunFolder, generations
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.store.storage import LocalDisk
from tests.stage.world import Bench, let_go

CANARY = "zanzibar-quokka"


def make_tickets(bench: Bench) -> None:
    """Thirty rows. Row 7 has a text of its own; rows 3 and 13 share theirs with nobody else."""
    bench.world.make_tickets(30)
    bench.world.ask(f"UPDATE tickets SET subject = '{CANARY}', body = '{CANARY} wrote this' WHERE id = 7")
    bench.world.ask("UPDATE tickets SET subject = 'twin', body = 'twin' WHERE id IN (3, 13)")


def erase(bench: Bench, *key: str, folder: Path | None = None, **options: Any) -> list[ErasedRun]:
    workspace = Workspace.open(str(folder or bench.world.folder / "workspace"), probe=False)
    scratch = bench.world.folder / "erasing"
    scratch.mkdir(exist_ok=True)
    person = Person(values=key, columns=options.pop("columns", ()))
    erasure = Erasure(workspace=workspace, person=person, scratch=scratch, options=Options(**options))
    found = list(erasure.run())
    erasure.leftovers()
    assert list(scratch.iterdir()) == []
    return found


def texts(folder: Path) -> Iterator[str]:
    """All that the files of a folder hold, with the columns of Parquet files read."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.read_bytes().decode(errors="replace")
            if path.suffix == ".parquet":
                yield str(pq.read_table(path).to_pylist())


def keys(folder: Path) -> list[int]:
    return sorted(
        key for path in folder.rglob("*.keys.parquet") for key in pq.read_table(path)["id"].to_pylist()
    )


def land(bench: Bench) -> None:
    """Make all tables again from the run folder."""
    for table in ("labels", "labels__failures", "labels__review"):
        bench.world.ask(f"DROP TABLE IF EXISTS {table}")
    parts = bench.world.parts()
    try:
        land_again(parts, RunFolder(workspace=parts.workspace, run="dag/task/run"))
    finally:
        parts.target.close()
        parts.provider.close()


def shown_keys(bench: Bench) -> set[str]:
    """The keys that a look at the run shows beside the codes of its failures."""
    (found,) = [inspect(one, 0.0) for one in generations(bench.world.workspace(), "dag/task/run")]
    return {key for failure in found.failures for key in failure.keys}


def test_a_row_is_gone_from_every_file_and_the_others_are_all_there(bench: Bench) -> None:
    make_tickets(bench)
    bench.fault(kind="refused", rows=[2, 7])
    bench.complete(rows_per_batch=10, max_attempts=1, on_exhausted="review")
    folder = bench.world.folder / "workspace"
    before = [bench.world.answers(), bench.world.failures()]
    assert any(CANARY in text for text in texts(folder))
    report = (folder / "dag/task/run/g1/report.json").read_text()
    assert "the keys 2, 7" in report
    assert shown_keys(bench) == {"2", "7"}
    (stale := folder / "dag/task/run/g1/plans/.tmp-left").write_text(CANARY)
    os.utime(stale, (0, 0))

    looked = erase(bench, "7", dry_run=True)
    assert any(CANARY in text for text in texts(folder))
    (erased,) = erase(bench, "7")

    assert looked == [erased]
    assert (erased.rows, erased.prompts, erased.answers, erased.examples, erased.left) == (1, 1, 1, 1, "")
    assert erased.statements == (
        "DELETE FROM labels WHERE id = 7;",
        "DELETE FROM labels__failures WHERE id = 7;",
        "DELETE FROM labels__review WHERE id = 7;",
    )
    assert [batch.is_sure for batch in erased.batches] == [True]
    assert [text for text in texts(folder) if CANARY in text] == []
    assert keys(folder) == [key for key in range(30) if key != 7]
    assert "the keys 2, [erased]" in (folder / "dag/task/run/g1/report.json").read_text()
    assert erase(bench, "7") == []
    land(bench)
    del before[1][7]
    assert [bench.world.answers(), bench.world.failures()] == before
    (found,) = [inspect(one, 0.0) for one in generations(bench.world.workspace(), "dag/task/run")]
    assert found.passed
    assert shown_keys(bench) == {"2"}


def test_a_shared_text_stays_until_its_last_row_goes_and_that_row_bears_the_cost(openai: Bench) -> None:
    make_tickets(openai)
    openai.complete()
    folder = openai.world.folder / "workspace"
    money = "SELECT sum(_llm_cost_usd) FROM labels WHERE id IN (3, 13)"
    cost = openai.world.ask(money)

    (first,) = erase(openai, "3")

    assert (first.rows, first.prompts, first.answers) == (1, 0, 0)
    assert any("twin" in text for text in texts(folder))
    land(openai)
    assert sorted(openai.world.answers()) == [key for key in range(30) if key != 3]
    assert openai.world.ask(money) == cost

    (second,) = erase(openai, "13", columns=("id",))

    assert (second.rows, second.prompts, second.answers) == (1, 1, 1)
    assert [text for text in texts(folder) if "twin" in text] == []


def test_a_row_is_found_by_any_column_that_its_run_carries(openai: Bench) -> None:
    make_tickets(openai)
    openai.complete()

    assert erase(openai, "7", columns=("ticket",)) == []
    (erased,) = erase(openai, CANARY, columns=("subject",))

    assert erased.rows == 1
    assert erased.statements[0] == f"DELETE FROM labels WHERE subject = '{CANARY}';"


class Breaking(LocalDisk):
    """A disk that fails at the n-th change, as a process does that is killed there."""

    def __init__(self, root: Path, changes: int) -> None:
        super().__init__(root, make_root=False)
        self.changes = changes

    def _change(self) -> None:
        if not self.changes:
            raise StoreUnavailable("killed here")
        self.changes -= 1

    def create(self, path: str, data: bytes) -> bool:
        self._change()
        return super().create(path, data)

    def put(self, path: str, local: Path) -> None:
        self._change()
        super().put(path, local)

    def write(self, path: str, blocks: Any, aside: Path, *, keep: bool = False) -> bool:
        self._change()
        return super().write(path, blocks, aside, keep=keep)


def test_killed_between_any_two_changes_it_is_repeated(openai: Bench) -> None:
    make_tickets(openai)
    openai.fault(kind="refused", rows=[7])
    openai.complete()
    pristine = openai.world.folder / "workspace"
    killed = openai.world.folder / "killed"
    for changes in range(20):
        shutil.rmtree(killed, ignore_errors=True)
        shutil.copytree(pristine, killed)
        scratch = openai.world.folder / f"scratch-{changes}"
        scratch.mkdir()
        broken = Workspace(str(killed), Breaking(killed, changes))
        try:
            list(Erasure(workspace=broken, person=Person(values=("7",)), scratch=scratch).run())
        except StoreUnavailable:
            erase(openai, "7", folder=killed)
            assert [text for text in texts(killed) if CANARY in text] == []
            assert 7 not in keys(killed)
            assert "the keys [erased]" in (killed / "dag/task/run/g1/report.json").read_text()
        else:
            break
    assert 5 < changes < 19


def test_an_unfinished_run_is_left_and_one_that_was_only_planned_goes_on_without_the_row(
    openai: Bench,
) -> None:
    make_tickets(openai)
    run = openai.run(rows_per_batch=10)
    run.generation()
    folder = openai.world.folder / "workspace"

    (left,) = erase(openai, "7")
    assert left.left == "it is not finished"
    assert any(CANARY in text for text in texts(folder))

    (erased,) = erase(openai, "7", even_unfinished=True)
    assert (erased.rows, erased.left) == (1, "")
    assert [text for text in texts(folder) if CANARY in text] == []
    openai.advance(run)
    (left,) = erase(openai, "8", even_unfinished=True)
    assert left.left.startswith("it has batches at the provider")
    openai.complete()
    assert sorted(openai.world.answers()) == [key for key in range(30) if key != 7]
    assert openai.world.failures() == {}


@pytest.mark.parametrize(("wanted", "value"), [("1.50", 1.5), ("true", True), ("0a", b"\n"), ("x", "x")])
def test_a_key_is_recognised_in_the_spelling_of_people(wanted: str, value: object) -> None:
    batch = pa.RecordBatch.from_pydict({"id": [value, None]})

    assert Person(values=(wanted,)).rows(batch, ("id",)) == [True, False]


def test_a_row_that_shared_a_request_is_gone_and_the_others_can_still_be_sent(openai: Bench) -> None:
    make_tickets(openai)
    openai.complete("dag/task/done", rows_per_request=5, min_agreement=None)
    openai.world.simulator.turn(batch_seconds=3600)
    run = openai.run("dag/task/open", rows_per_request=5, min_agreement=None, target="other")
    Planner(
        stage=run.stage,
        parts=run.parts,
        folder=RunFolder(workspace=run.parts.workspace, run=run.name),
        max_tries=0,
    ).plan()
    let_go(run)
    folder = openai.world.folder / "workspace"
    assert sum(CANARY in text for text in texts(folder)) >= 3

    erased = erase(openai, "7", even_unfinished=True)

    assert sorted((one.rows, one.prompts, one.left) for one in erased) == [(1, 1, ""), (1, 1, "")]
    assert not any(CANARY in text for text in texts(folder))
    openai.world.simulator.turn(batch_seconds=0)
    openai.complete("dag/task/open", rows_per_request=5, min_agreement=None, target="other")
    assert len(openai.world.ask("SELECT id FROM other")) == 29
