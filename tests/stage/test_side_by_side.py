"""A worker does free operations in parallel, and creates batches one after another."""

import threading
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import pytest

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.errors import StoreUnavailable
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.store.remote import IN_MEMORY, ObjectStorage
from airflow_batch_llm.store.storage import LocalDisk
from tests.stage.world import Bench, let_go

PATIENCE = 60.0


class Meeting:
    """Two callers that wait for each other. A caller that comes alone fails, and one that comes later passes."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2)
        self._number = count(1)

    def attend(self) -> None:
        if next(self._number) <= 2:
            self._barrier.wait(PATIENCE)


def test_shards_are_uploaded_side_by_side_and_sent_one_after_another(openai: Bench) -> None:
    openai.world.make_tickets(8)
    run = openai.run(rows_per_batch=2)
    provider: Any = run.parts.provider
    upload, submit = provider.upload, provider.submit
    uploads, sending, together = Meeting(), threading.Semaphore(1), []

    def uploading(*arguments: Any) -> str:
        uploads.attend()
        return str(upload(*arguments))

    def submitting(*arguments: Any) -> str:
        together.append(not sending.acquire(blocking=False))
        try:
            return str(submit(*arguments))
        finally:
            sending.release()

    provider.upload, provider.submit = uploading, submitting
    finished = openai.complete(run)

    assert finished.report.final == {Outcome.SUCCEEDED: 8}
    assert (openai.world.charged(), any(together)) == (8, False)


class Broken(LocalDisk):
    """A disk that takes no record of the first shard's batch."""

    def create(self, path: str, data: bytes) -> bool:
        if path.endswith("/journal/0001/0002.json"):
            raise StoreUnavailable("the disk is full")
        return super().create(path, data)


def test_what_was_prepared_and_not_sent_is_taken_back(openai: Bench) -> None:
    openai.world.make_tickets(8)
    workspace = openai.world.workspace()
    openai.workspace = Workspace(workspace.uri, Broken(openai.world.folder / "workspace", make_root=True))
    run = openai.run(rows_per_batch=2)
    with pytest.raises(StoreUnavailable):
        run.advance()
    let_go(run)

    calls = openai.world.ledger()["calls"]
    assert calls["upload"] - 1 == calls["delete_file"] > 0
    assert len(openai.batches()) == 1

    openai.workspace = workspace
    run = openai.run(rows_per_batch=2)
    run.advance()
    assert len(openai.batches()) == 4, "no shard waits for the lease of an intent that was not sent"
    let_go(run)
    assert openai.complete(rows_per_batch=2).report.final == {Outcome.SUCCEEDED: 8}
    assert openai.world.charged() == 8


class Elsewhere(ObjectStorage):
    """An object storage that takes the files of two shards at the same time, or none."""

    def __init__(self, name: str) -> None:
        super().__init__(fsspec.filesystem("memory"), f"memory://{name}", IN_MEMORY)
        self._meetings = {"requests.jsonl": Meeting(), "keys.parquet": Meeting()}
        self._running = threading.Semaphore(4)

    def put(self, path: str, local: Path) -> None:
        meeting = self._meetings.get(path.rpartition("/")[2].partition(".")[2])
        assert self._running.acquire(blocking=False), "more files than that are in memory"
        if meeting is not None:
            meeting.attend()
        super().put(path, local)
        self._running.release()


def test_the_files_of_shards_are_put_side_by_side_and_stay_in_order(openai: Bench) -> None:
    openai.world.make_tickets(12)
    openai.workspace = Workspace("memory://elsewhere", Elsewhere("elsewhere"))

    finished = openai.complete(rows_per_batch=2)

    assert finished.report.final == {Outcome.SUCCEEDED: 12}
    assert len(openai.world.answers()) == openai.world.charged() == 12
    assert list((openai.world.folder / "spool").rglob("*.jsonl")) == []


class Slow(LocalDisk):
    """A disk on which the results of two shards are recorded at the same time, or not at all."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, make_root=True)
        self._meeting = Meeting()

    def put(self, path: str, local: Path) -> None:
        if "/landed/" in path:
            self._meeting.attend()
        super().put(path, local)


def test_a_shard_is_staged_while_what_became_of_the_last_one_is_recorded(openai: Bench) -> None:
    openai.world.make_tickets(8)
    workspace = openai.world.workspace()
    openai.workspace = Workspace(workspace.uri, Slow(openai.world.folder / "workspace"))

    assert openai.complete(rows_per_batch=2).report.final == {Outcome.SUCCEEDED: 8}
