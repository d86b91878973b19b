"""The contract of every workspace: a test class per storage inherits it.

The promises that guard money are tried by many processes at once, since one process cannot break them: a record has
one author, a folder of records has no gaps, and no reader ever sees a part of anything.
"""

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import cast

import orjson
import pytest

from airflow_batch_llm.errors import StoreUnreadable
from airflow_batch_llm.store import Workspace

Opener = Callable[[], Workspace]

PROCESSES = multiprocessing.get_context("spawn")


def content(author: int, number: int) -> bytes:
    """Make a record that tells its author, and whether it is whole."""
    body = f"{author}:{number}:" + "x" * (number * 37 % 5000)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return orjson.dumps({"author": author, "number": number, "body": body, "digest": digest})


def is_whole(data: bytes) -> bool:
    """Say whether bytes are a whole record that `content` made."""
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return bool(hashlib.sha256(record["body"].encode()).hexdigest() == record["digest"])


def create_all(opener: Opener, start: Barrier, author: int, count: int) -> tuple[int, list[int]]:
    workspace = opener()
    won = []
    for number in range(count):
        start.wait()  # all arrive at each record together
        if workspace.create(f"race/{number:04d}.json", content(author, number)):
            won.append(number)
    return author, won


def append_all(opener: Opener, start: Barrier, author: int, count: int) -> tuple[int, list[int]]:
    workspace = opener()
    start.wait()
    numbers: list[int] = []
    while len(numbers) < count:
        number = workspace.append("journal", content(author, len(numbers)))
        if number is not None:
            numbers.append(number)
    return author, numbers


def _watch(opener: Opener, _: Barrier, stop: Event) -> list[int]:
    """Read records, as soon as they can be seen, and give those that were broken."""
    workspace = opener()
    broken, number = [], 0
    while not stop.is_set():
        data = workspace.read(f"race/{number:04d}.json")
        if data is not None:
            if not is_whole(data):
                broken.append(number)
            number += 1
    return broken


def _report(
    answers: "Queue[object]", work: Callable[..., object], opener: Opener, start: Barrier, *rest: object
) -> None:
    """Do the work of one process, and say what came of it also when it failed."""
    try:
        answers.put(work(opener, start, *rest))
    except Exception as error:
        start.abort()
        answers.put(error)
        raise


def replace(opener: Opener, folder: Path, times: int) -> None:
    workspace = opener()
    for letter in range(times):
        (folder / "source").write_bytes(bytes([65 + letter]) * (9_000_000 + letter))
        workspace.put("file.jsonl", folder / "source")


def is_one_version(data: bytes) -> bool:
    return data == data[:1] * (9_000_000 + data[0] - 65)


def race(
    work: Callable[..., object], opener: Opener, writers: int, count: int
) -> list[tuple[int, list[int]]]:
    """Let processes do the same work at the same time under the eyes of a reader, and give their answers."""
    start, stop = PROCESSES.Barrier(writers), PROCESSES.Event()
    answers: Queue[object] = PROCESSES.Queue()
    sights: Queue[object] = PROCESSES.Queue()
    crew: list[BaseProcess] = [
        PROCESSES.Process(target=_report, args=(answers, work, opener, start, author, count))
        for author in range(writers)
    ]
    reader = PROCESSES.Process(target=_report, args=(sights, _watch, opener, start, stop))
    with running([reader, *crew]):
        came = [answers.get(timeout=300) for _ in crew]
        stop.set()
        seen = sights.get(timeout=60)
    for failure in (*came, seen):
        if isinstance(failure, Exception):
            raise failure
    assert seen == []
    return cast("list[tuple[int, list[int]]]", came)


@contextmanager
def running(processes: Sequence[BaseProcess]) -> Iterator[None]:
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
            process.join()


_BOUNDARY = b'{"text":"a"}\n--==0==--\n{"text":"b"}\n'  # what separates the parts of some clients' uploads


class StoreContract:
    """Inherit, and give the fixture `opener`: a function that can be pickled and opens the same workspace again.

    The workspace must be empty at the beginning of each test.
    """

    writers = 8
    records = 200  # that all writers try to create
    appends = 3  # by each writer, to the same folder

    @pytest.fixture
    def opener(self) -> Opener:
        raise NotImplementedError

    @pytest.fixture
    def workspace(self, opener: Opener) -> Workspace:
        return opener()

    @pytest.fixture
    def other(self, opener: Opener) -> Workspace:
        """Return the same workspace, as another worker opened it."""
        return opener()

    # Records

    def test_a_created_record_reads_as_it_was_written(self, workspace: Workspace) -> None:
        assert workspace.create("dag/task/run/g1/plan.json", content(1, 1))
        assert workspace.read("dag/task/run/g1/plan.json") == content(1, 1)

    def test_a_record_is_created_once_and_stays_as_it_is(
        self, workspace: Workspace, other: Workspace
    ) -> None:
        assert workspace.create("plan.json", content(1, 1))
        assert not other.create("plan.json", content(2, 1))
        assert not workspace.create("plan.json", content(2, 1))
        assert other.read("plan.json") == content(1, 1)

    def test_a_creation_repeated_with_the_same_bytes_is_still_ours(self, workspace: Workspace) -> None:
        assert workspace.create("plan.json", content(1, 1))
        assert workspace.create("plan.json", content(1, 1))

    def test_a_record_is_never_empty(self, workspace: Workspace) -> None:
        with pytest.raises(ValueError, match="empty"):
            workspace.create("plan.json", b"")
        assert workspace.read("plan.json") is None

    def test_an_absent_record_reads_as_none(self, workspace: Workspace) -> None:
        assert workspace.read("plan.json") is None
        assert workspace.read("no/such/folder/plan.json") is None
        workspace.create("folder/plan.json", content(1, 1))
        assert workspace.read("folder/pla") is None

    def test_another_workers_record_is_seen_at_once(self, workspace: Workspace, other: Workspace) -> None:
        assert workspace.names("journal") == []
        assert workspace.read("journal/0001.json") is None
        other.create("journal/0001.json", content(1, 1))
        assert workspace.read("journal/0001.json") == content(1, 1)
        assert workspace.names("journal") == ["0001.json"]
        other.create("journal/0002.json", content(1, 2))
        assert [number for number, _ in workspace.records("journal")] == [1, 2]
        assert workspace.names("journal") == ["0001.json", "0002.json"]
        other.delete("journal/0002.json")
        assert workspace.read("journal/0002.json") is None
        assert workspace.names("journal") == ["0001.json"]

    @pytest.mark.parametrize(
        "name", ["manual__2026-11-21T00:00:00.5+00:00", "a b", "a%2Fb", "é&=~'(1)", "a" * 200]
    )
    def test_odd_names_are_only_names(self, workspace: Workspace, name: str) -> None:
        assert workspace.create(f"{name}/{name}", content(1, 1))
        assert workspace.read(f"{name}/{name}") == content(1, 1)
        assert workspace.names() == [name]
        assert workspace.names(name) == [name]
        workspace.delete(f"{name}/{name}")
        assert workspace.read(f"{name}/{name}") is None

    # Numbered records

    def test_folders_are_listed_without_the_files_beside_them(
        self, workspace: Workspace, other: Workspace
    ) -> None:
        workspace.create("dag/task/run/g1/plan.json", content(1, 1))
        workspace.create("dag/notes", content(1, 2))

        assert (other.folders("dag"), other.folders("dag/task"), other.folders("none")) == (
            ["task"],
            ["run"],
            [],
        )

    def test_records_are_numbered_from_one(self, workspace: Workspace) -> None:
        assert [workspace.append("journal", content(1, n)) for n in range(3)] == [1, 2, 3]
        assert list(workspace.records("journal")) == [(n + 1, content(1, n)) for n in range(3)]
        assert workspace.names("journal") == ["0001.json", "0002.json", "0003.json"]

    def test_an_append_after_what_was_seen_is_lost_to_anything_written_since(
        self, workspace: Workspace, other: Workspace
    ) -> None:
        assert workspace.append("journal", content(1, 1), after=0) == 1
        assert other.append("journal", content(2, 2), after=1) == 2
        assert workspace.append("journal", content(1, 2), after=1) is None
        assert [data for _, data in workspace.records("journal")] == [content(1, 1), content(2, 2)]

    def test_numbers_go_on_beyond_four_digits(self, workspace: Workspace) -> None:
        assert workspace.append("journal", content(1, 1), after=9998) == 9999
        assert workspace.append("journal", content(1, 2), after=9999) == 10000
        assert workspace.read("journal/10000.json") == content(1, 2)

    # Files

    @pytest.mark.parametrize("size", [0, 1, 5 << 20, (17 << 20) + 5])
    def test_a_file_comes_back_as_it_was_put(self, workspace: Workspace, tmp_path: Path, size: int) -> None:
        source, copy = tmp_path / "source", tmp_path / "copy"
        source.write_bytes(os.urandom(size))
        workspace.put("results/b1.jsonl", source)
        assert workspace.get("results/b1.jsonl", copy)
        assert copy.read_bytes() == source.read_bytes()
        assert b"".join(workspace.blocks("results/b1.jsonl") or ()) == source.read_bytes()

    def test_a_file_may_hold_anything(self, workspace: Workspace, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(_BOUNDARY)
        workspace.put("file.jsonl", tmp_path / "source")
        assert workspace.read("file.jsonl") == _BOUNDARY

    @pytest.mark.parametrize("blocks", [0, 1, 40])
    def test_a_file_is_written_block_by_block(
        self, workspace: Workspace, other: Workspace, tmp_path: Path, blocks: int
    ) -> None:
        content = [os.urandom(500_000) for _ in range(blocks)]
        workspace.write("results/b1.jsonl", iter(content), tmp_path / "aside")
        assert b"".join(other.blocks("results/b1.jsonl") or ()) == b"".join(content)
        assert list(tmp_path.iterdir()) == []

    def test_a_file_whose_blocks_break_off_is_not_there(self, workspace: Workspace, tmp_path: Path) -> None:
        def blocks() -> Iterator[bytes]:
            yield b"x" * 2_000_000
            raise LookupError

        with pytest.raises(LookupError):
            workspace.write("results/b1.jsonl", blocks(), tmp_path / "aside")
        assert workspace.blocks("results/b1.jsonl") is None
        assert workspace.names("results") == []
        assert list(tmp_path.iterdir()) == []

    def test_a_put_file_replaces_the_former_one(
        self, workspace: Workspace, other: Workspace, tmp_path: Path
    ) -> None:
        for text in (b"a longer first content", b"second"):
            (tmp_path / "source").write_bytes(text)
            workspace.put("file.jsonl", tmp_path / "source")
            assert other.read("file.jsonl") == text
            assert other.get("file.jsonl", tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == text

    def test_an_absent_file_is_not_got(self, workspace: Workspace, tmp_path: Path) -> None:
        assert not workspace.get("file.jsonl", tmp_path / "copy")
        assert workspace.blocks("file.jsonl") is None
        assert list(tmp_path.iterdir()) == []

    # Removal

    def test_deleting_twice_is_no_error(self, workspace: Workspace) -> None:
        workspace.create("plan.json", content(1, 1))
        workspace.delete("plan.json")
        workspace.delete("plan.json")
        assert workspace.read("plan.json") is None

    def test_a_deleted_folder_is_gone_with_all_below_and_nothing_beside(self, workspace: Workspace) -> None:
        for path in ("run/plan.json", "run/journal/1/0001.json", "run/journal/2/0001.json", "run2/plan.json"):
            workspace.create(path, content(1, 1))
        workspace.delete_folder("run")
        workspace.delete_folder("run")
        assert workspace.names("run") == []
        assert workspace.read("run/journal/2/0001.json") is None
        assert workspace.names() in (["run2"], ["run", "run2"])
        assert workspace.read("run2/plan.json") == content(1, 1)

    def test_names_are_those_directly_in_a_folder(self, workspace: Workspace) -> None:
        for path in ("targets/a/run1", "targets/a/run2", "targets/ab/run3", "targets/a/x/y"):
            workspace.create(path, content(1, 1))
        assert workspace.names("targets/a") == ["run1", "run2", "x"]
        assert workspace.names("targets") == ["a", "ab"]
        assert workspace.names() == ["targets"]

    # Safety

    def test_a_workspace_is_probed_when_it_is_opened_and_no_trace_is_left(self, workspace: Workspace) -> None:
        assert workspace.names() == []

    def test_of_many_processes_one_creates_each_record_and_no_part_of_one_is_ever_read(
        self, opener: Opener
    ) -> None:
        answers = race(create_all, opener, self.writers, self.records)
        winners = {author: set(won) for author, won in answers}
        assert sum(len(won) for won in winners.values()) == self.records
        workspace = opener()
        for number in range(self.records):
            [author] = [author for author, won in winners.items() if number in won]
            assert workspace.read(f"race/{number:04d}.json") == content(author, number)
        assert len(workspace.names("race")) == self.records

    def test_many_processes_append_without_a_gap_or_a_loss(self, opener: Opener) -> None:
        answers = race(append_all, opener, self.writers, self.appends)
        held = dict(opener().records("journal"))
        assert list(held) == list(range(1, self.writers * self.appends + 1))
        for author, numbers in answers:
            assert [held[number] for number in numbers] == [content(author, n) for n in range(self.appends)]

    def test_a_file_that_is_replaced_is_read_as_the_old_or_the_new_one(
        self, opener: Opener, workspace: Workspace, tmp_path: Path
    ) -> None:
        times, copy = 6, tmp_path / "copy"
        writer = PROCESSES.Process(target=replace, args=(opener, tmp_path, times))
        with running([writer]):
            while writer.is_alive():
                with suppress(StoreUnreadable):  # it says so when a replacement comes between two blocks
                    if workspace.get("file.jsonl", copy):
                        assert is_one_version(copy.read_bytes())
        assert workspace.get("file.jsonl", copy)
        assert copy.stat().st_size == 9_000_000 + times - 1
