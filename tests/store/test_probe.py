"""The proof that a workspace creates a record for one writer only, and the storages that fail it."""

import threading
from collections.abc import Iterator

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_batch_llm.errors import StoreUnsafe
from airflow_batch_llm.store import Workspace
from tests.hop import Hop, hop_to
from tests.store.servers import open_s3


@pytest.fixture
def hop(s3: str) -> Iterator[Hop]:
    with hop_to(s3) as hop:
        yield hop


def opened(kind: type[MemoryFileSystem]) -> Workspace:
    return Workspace.open("memory://runs", filesystem_factory=lambda protocol: kind(skip_instance_cache=True))


class OverwritesAlways(MemoryFileSystem):
    """Accepts the condition and ignores it."""

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value)


class LooksAndThenWrites(MemoryFileSystem):
    """Looks before it writes, so that writers who look at the same time all succeed."""

    everybody_looked = threading.Barrier(4)

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if self.exists(path):
            raise FileExistsError(path)
        if "contested" in path:
            self.everybody_looked.wait()
        super().pipe_file(path, value)


class ShowsLater(MemoryFileSystem):
    """Acknowledges a write that nobody can read yet."""

    def cat_file(self, path, start=None, end=None, **kwargs):
        raise FileNotFoundError(path)


class NeverDeletes(MemoryFileSystem):
    def rm_file(self, path):
        """Acknowledge, and keep the file."""


@pytest.mark.parametrize(
    ("kind", "finding"),
    [
        (OverwritesAlways, "created again"),
        (LooksAndThenWrites, "4 of 4 writers"),
        (ShowsLater, "not there right after"),
        (NeverDeletes, "still there right after"),
    ],
)
def test_an_unsafe_storage_is_refused_with_what_to_do(kind: type[MemoryFileSystem], finding: str) -> None:
    with pytest.raises(StoreUnsafe, match=f"{finding}.*Use a storage with conditional writes"):
        opened(kind)


def test_an_s3_server_that_does_not_know_conditional_writes_is_refused(hop: Hop, folder: str) -> None:
    hop.removed_headers.add("if-none-match")
    with pytest.raises(StoreUnsafe, match="created again"):
        open_s3(hop.endpoint, folder)


def test_a_refused_workspace_is_refused_again(hop: Hop, folder: str) -> None:
    hop.removed_headers.add("if-none-match")
    for _ in range(2):
        with pytest.raises(StoreUnsafe):
            open_s3(hop.endpoint, folder)


def test_a_workspace_is_probed_once_in_a_process(hop: Hop, folder: str) -> None:
    open_s3(hop.endpoint, folder)
    assert any("probe-" in request for request in hop.requests)
    hop.requests.clear()
    open_s3(hop.endpoint, folder)
    assert hop.requests == []


def test_another_folder_is_probed_by_itself(hop: Hop, folder: str) -> None:
    open_s3(hop.endpoint, folder)
    hop.requests.clear()
    open_s3(hop.endpoint, f"{folder}/below")
    assert any("probe-" in request for request in hop.requests)


def test_a_storage_in_memory_that_keeps_the_promise_is_accepted() -> None:
    assert opened(MemoryFileSystem).create("plan.json", b'{"nonce":1}')
