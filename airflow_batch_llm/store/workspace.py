"""Numbered records in folders, and files: the verbs that all other modules use.

A record is created once and never changed; a folder's records are read by number, 1, 2, 3, until one is surely
absent. Each record must hold a nonce, so that equal bytes mean the same author.

Before the first record, it is proved that exactly one writer can create a record. Old or simple S3 servers accept a
conditional write and ignore its condition, so two workers could both pay. Therefore several writers try to create the
same record at once, once per process and workspace.
"""

import os
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Self, TypeVar

from airflow_batch_llm.errors import InputError, StoreUnavailable, StoreUnreadable, StoreUnsafe
from airflow_batch_llm.store.remote import IN_MEMORY, KINDS, FileSystem, ObjectStorage, default_filesystem
from airflow_batch_llm.store.storage import Block, LocalDisk, Storage, brief

_Item = TypeVar("_Item")
_Done = TypeVar("_Done")

#: Records that are read or written in parallel, because each takes its time in object storage.
_AT_ONCE = 16

_WRITERS = 4
_proven: set[tuple[object, ...]] = set()


def probe_once(storage: Storage, uri: str, identity: tuple[object, ...]) -> None:
    """Probe a workspace unless this process has done so."""
    if identity not in _proven:
        probe(storage, uri)
        _proven.add(identity)


def probe(storage: Storage, uri: str) -> None:
    """Try what a workspace must do, on two records of which no trace is left."""
    name = f"probe-{uuid.uuid4().hex}"
    alone, contested = f"{name}-alone.json", f"{name}-contested.json"
    try:
        _one_after_the_other(storage, uri, alone)
        _at_once(storage, uri, contested)
    finally:
        storage.delete(alone)
        storage.delete(contested)
    if storage.read(alone) is not None:
        raise _unsafe(uri, "a record was still there right after it had been deleted")


def _one_after_the_other(storage: Storage, uri: str, path: str) -> None:
    if storage.read(path) is not None:
        raise _unsafe(uri, "a record that was never written could be read")
    if not storage.create(path, b"first") or storage.read(path) != b"first":
        raise _unsafe(uri, "a record was not there right after it had been written")
    if storage.create(path, b"second") or storage.read(path) != b"first":
        raise _unsafe(uri, "a record that existed was created again")


def _at_once(storage: Storage, uri: str, path: str) -> None:
    contents = [f"writer {number}".encode() for number in range(_WRITERS)]
    with ThreadPoolExecutor(_WRITERS) as pool:
        won = list(pool.map(lambda content: storage.create(path, content), contents))
    if won.count(True) != 1 or storage.read(path) != contents[won.index(True)]:
        raise _unsafe(
            uri,
            f"{won.count(True)} of {_WRITERS} writers got the answer that they had created the same record",
        )


def _unsafe(uri: str, finding: str) -> StoreUnsafe:
    return StoreUnsafe(
        f"The workspace {uri} cannot guard against paying twice: {finding}. Use a storage with conditional writes "
        "(Google Cloud Storage, Amazon S3, Azure Blob Storage, a recent MinIO), a local disk or an NFS mount."
    )


FileSystemFactory = Callable[[str], FileSystem]

# Below the size from which clients upload in parts, so that a creation is one request.
LARGEST_RECORD = 16 << 20
_BLOCK = 1 << 20
_MEANINGFUL = frozenset("\\*?[]#")  # to some client: a pattern, a version, a separator


class Workspace:
    """A place shared by all workers, in which what was recorded stays recorded."""

    def __init__(self, uri: str, storage: Storage) -> None:
        self.uri = uri
        self._storage = storage

    def __repr__(self) -> str:
        return f"Workspace({self.uri!r})"

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        filesystem_factory: FileSystemFactory | None = None,
        probe: bool = True,
        conn_id: str | None = None,
    ) -> Self:
        """Open a workspace by URI or path.

        `filesystem_factory` gives the file system for a protocol, with the credentials it needs. Without `probe`
        nothing is written or made: enough to look at a workspace, not to work in it. `conn_id` names the connection
        behind the file system, for messages.
        """
        storage, identity = _storage(uri, filesystem_factory, make_root=probe, conn_id=conn_id)
        workspace = cls(uri, storage)
        if probe:
            probe_once(storage, uri, identity)
        return workspace

    def create(self, path: str, data: bytes) -> bool:
        """Create a record unless it exists. Returns False if another process created it first."""
        if not data:
            raise ValueError(f"the record {path} would be empty")
        if len(data) > LARGEST_RECORD:
            raise ValueError(f"the record {path} would have {len(data)} bytes: put a file instead")
        return self._storage.create(_checked(path), data)

    def read(self, path: str) -> bytes | None:
        """Return a record's bytes, or None if it is certainly absent."""
        data = self._storage.read(_checked(path))
        if data == b"":
            raise StoreUnreadable(
                f"{self.uri}/{path} is empty, which no record ever is. Look who else writes there."
            )
        return data

    def records(self, folder: str, *, after: int = 0) -> Iterator[tuple[int, bytes]]:
        """Give the records of a folder with their numbers, as far as they go without a gap.

        `after` is the number of the last record that is known, and is left out.
        """
        number = after + 1
        while (data := self.read(_record(folder, number))) is not None:
            yield number, data
            number += 1

    def append(self, folder: str, data: bytes, *, after: int | None = None) -> int | None:
        """Create the next record of a folder and return its number, or None if another process was first.

        With `after`, the number of the last record that was seen, it is lost to anything written since.
        """
        seen = max((number for number, _ in self.records(folder)), default=0) if after is None else after
        return seen + 1 if self.create(_record(folder, seen + 1), data) else None

    def put(self, path: str, local: Path) -> None:
        """Publish a local file. Readers see the former content or the new one, whole."""
        self._storage.put(_checked(path), local)

    def write(self, path: str, blocks: Iterable[Block], aside: Path, *, keep: bool = False) -> bool:
        """Publish these blocks as one file, as `put` does. `aside`: a free name on the local disk.

        With `keep`, a store that collects the file aside leaves it there. Returns whether it has.
        """
        return self._storage.write(_checked(path), blocks, aside, keep=keep)

    def collect(self, path: str, blocks: Iterable[Block], aside: Path) -> bool:
        """Publish these blocks as one file where that takes no upload, or else collect them `aside`.

        Returns whether the file aside is still to be `put`.
        """
        return self._storage.collect(_checked(path), blocks, aside)

    def get(self, path: str, local: Path) -> bool:
        """Bring a whole file to the local disk, to read it. Returns False if it is certainly absent.

        On the disk of the workspace it is the very file by another name: what is published there is never changed.
        """
        temporary = local.with_name(f".{local.name}.{uuid.uuid4().hex}")
        try:
            if not self._storage.link(_checked(path), temporary):
                blocks = self.blocks(path)
                if blocks is None:
                    return False
                with temporary.open("xb") as target:
                    target.writelines(blocks)
            os.replace(temporary, local)
        except OSError as error:
            raise StoreUnavailable(
                f"{self.uri}/{path} could not be copied to {local} ({brief(error)}). Free space on this worker's disk."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def blocks(self, path: str) -> Iterator[bytes] | None:
        """Return a file's content block by block, or None if it is certainly absent."""
        stream = self._storage.open_read(_checked(path))
        return None if stream is None else self._blocks(path, stream)

    def _blocks(self, path: str, stream: BinaryIO) -> Iterator[bytes]:
        with stream:
            while block := self._block(path, stream):
                yield block

    def _block(self, path: str, stream: BinaryIO) -> bytes:
        try:
            return stream.read(_BLOCK)
        except OSError as error:
            raise StoreUnreadable(
                f"{self.uri}/{path} could not be read to its end ({brief(error)}). Run the task again."
            ) from error

    def delete(self, path: str) -> None:
        """Delete a file, if it exists."""
        self._storage.delete(_checked(path))

    def delete_folder(self, path: str) -> None:
        """Delete all that lies below a folder, if anything does."""
        self._storage.delete_folder(_checked(path))

    def folders(self, folder: str = "") -> list[str]:
        """List the folders directly in a folder now."""
        return self._storage.folders(_checked(folder) if folder else "")

    def leftovers(self, before: float) -> list[str]:
        """List what killed writers left, unless it is younger than this time: seconds since the epoch."""
        return sorted(self._storage.leftovers(before))

    def delete_leftovers(self, before: float) -> int:
        """Delete what `leftovers` lists. Returns their number."""
        found = self.leftovers(before)
        for path in found:
            self._storage.delete(path)
        return len(found)

    def names(self, folder: str = "") -> list[str]:
        """List what lies directly in a folder now. Records are never found this way, only by number."""
        return self._storage.names(_checked(folder) if folder else "")


def _record(folder: str, number: int) -> str:
    return f"{folder}/{number:04d}.json"


def is_plain_name(name: str) -> bool:
    """Return whether every storage reads this as the name of one file or folder."""
    is_reserved = name in {"", ".", ".."} or name.startswith(".tmp-")
    return not is_reserved and name.isprintable() and not _MEANINGFUL & set(name)


def _checked(path: str) -> str:
    """Refuse a path that some storage would read as something else than plain names."""
    if not all(map(is_plain_name, path.split("/"))):
        raise ValueError(
            f"not a path inside a workspace: {path!r}. Its names may not be empty, '.', '..' or begin with '.tmp-', nor"
            " hold control characters or any of \\*?[]#."
        )
    return path


def _storage(
    uri: str, filesystem_factory: FileSystemFactory | None, *, make_root: bool, conn_id: str | None
) -> tuple[Storage, tuple[object, ...]]:
    """Open the place that a URI names, and say what tells it from others in this process."""
    protocol, separator, rest = uri.partition("://")
    if not separator or protocol == "file":
        root = Path(rest if separator else uri).expanduser()
        if separator and not root.is_absolute():
            raise InputError(f"{uri} names a host or a relative path. Write file:///absolute/path.")
        root = root.absolute()
        return LocalDisk(root, make_root=make_root), ("file", str(root))
    kind = KINDS.get(protocol)
    if protocol == "memory" and filesystem_factory is not None:
        kind = IN_MEMORY
    if protocol == "memory" and kind is None:
        raise StoreUnsafe(f"{uri} is lost with the process, and with it the record of what was paid for.")
    if kind is None:
        raise InputError(
            f"{uri} cannot be a workspace. Use a path, file://, or one of "
            f"{', '.join(f'{name}://' for name in sorted(KINDS))}: they create a record for one writer only."
        )
    if not rest.strip("/"):
        raise InputError(f"{uri} names no bucket. Write {protocol}://bucket/folder.")
    fs = (filesystem_factory or default_filesystem)(protocol)
    return ObjectStorage(fs, uri, kind, conn_id), (type(fs), hash(fs), uri)


def at_once(do: Callable[[_Item], _Done], items: Sequence[_Item]) -> list[_Done]:
    """Call a function on all items, several at a time. Returns the results in their order."""
    with closing(ahead(do, items, _AT_ONCE)) as done:
        return list(done)


def ahead(do: Callable[[_Item], _Done], items: Iterable[_Item], most: int) -> Generator[_Done, None, None]:
    """Yield the result of each item, in their order, while the next ones are being worked on, at most `most` at a time.

    Items are taken from an iterator in the caller's thread, as there is room for them. After an error, or when the caller
    closes the generator, no further item is begun.
    """
    if isinstance(items, Sequence) and len(items) < 2:
        yield from map(do, items)
        return
    left, running = iter(items), deque[Future[_Done]]()
    pool = ThreadPoolExecutor(max_workers=most)
    try:
        for item in islice(left, most):
            running.append(pool.submit(copy_context().run, do, item))
        while running:
            done = running.popleft().result()
            for item in islice(left, 1):
                running.append(pool.submit(copy_context().run, do, item))
            yield done
    finally:
        pool.shutdown(cancel_futures=True)
