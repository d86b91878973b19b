"""Processes that write to one workspace at the same time, and what they find.

Everything here can be pickled, so that each process is a fresh one that opens the workspace by itself.
"""

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import cast

import orjson

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
