"""The interface between a workspace and its storage, and storage on a disk of this machine or on a mount that the workers share.

"Absent" is always certain. A storage that cannot tell raises `StoreUnreadable`; a write whose outcome is unknown raises
`StoreUnavailable`. Nothing is ever answered from a listing that was cached.

On a disk a record is written to a temporary file, flushed to the disk, and then hard-linked to its name. Only one writer can
make the link, and a reader who sees the name sees all of the bytes, also after a power cut. A root that is no longer the
folder that was opened (an unmounted share) is an error, since every record in it would look absent.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from airflow_batch_llm.errors import StoreError, StoreUnavailable, StoreUnreadable, StoreUnsafe

Block = bytes | memoryview


class Storage(Protocol):
    """One place in which bytes are kept by path. Paths are relative, `/` between their names."""

    def create(self, path: str, data: bytes) -> bool:
        """Create a record as a whole if there is none. Returns whether it holds these bytes now, and not others."""

    def read(self, path: str) -> bytes | None:
        """Return all bytes of a file, or None if it is certainly absent."""

    def open_read(self, path: str) -> BinaryIO | None:
        """Open a file as a stream that fails, rather than mixes, if the file is replaced meanwhile."""

    def put(self, path: str, local: Path) -> None:
        """Publish a local file under this path, replacing what is there in one step."""

    def write(self, path: str, blocks: Iterable[Block], aside: Path, *, keep: bool = False) -> bool:
        """Publish these blocks as one file. Where only whole files are taken, they are collected `aside` before.

        With `keep` the collected file stays. Returns whether there is one that stays.
        """

    def collect(self, path: str, blocks: Iterable[Block], aside: Path) -> bool:
        """Publish these blocks as one file, or collect them `aside`. Returns whether that file is still to be put."""

    def link(self, path: str, local: Path) -> bool:
        """Give the file this second name on its own disk.

        Returns False if there is no file or no such disk, or it is not allowed.
        """

    def delete(self, path: str) -> None:
        """Delete a file. A missing file is not an error."""

    def delete_folder(self, path: str) -> None:
        """Delete everything below a folder. A missing folder is not an error."""

    def names(self, folder: str) -> list[str]:
        """List the names of files and folders directly in a folder, as they are now."""

    def folders(self, folder: str) -> list[str]:
        """List the names of folders directly in a folder, as they are now."""

    def leftovers(self, before: float) -> Iterator[str]:
        """Find what killed writers left beside the files that they wrote, unless it is younger than this time."""


def brief(error: BaseException) -> str:
    """Name an error of a client library in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


_TEMPORARY = ".tmp-"
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_NOT_ALLOWED = {
    errno.EACCES,
    errno.EEXIST,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}


class LocalDisk:
    """Files below one folder."""

    def __init__(self, root: Path, *, make_root: bool) -> None:
        self._root = root
        try:
            if make_root:
                _make_folder(root)
            self._identity = self._root_identity()
        except OSError as error:
            raise StoreError(
                f"The workspace {root} cannot be used ({brief(error)}). Make it a folder that every worker can write."
            ) from error

    def create(self, path: str, data: bytes) -> bool:
        target = self._root / path
        with self._publishing(target, lambda file: file.write(data)) as temporary:
            try:
                os.link(temporary, target)
            except OSError as error:
                # If a network file system has lost the reply, the record that exists may be this process's own.
                held = self.read(path)
                if held is not None:
                    return held == data
                if error.errno in _NO_HARD_LINKS:
                    raise _no_hard_links(self._root, error) from error
                raise
        return True

    def read(self, path: str) -> bytes | None:
        file = self._open(path)
        if file is None:
            return None
        try:
            with file:
                return file.read()
        except OSError as error:
            raise self._unreadable(path, error) from error

    def open_read(self, path: str) -> BinaryIO | None:
        return self._open(path)

    def put(self, path: str, local: Path) -> None:
        target = self._root / path
        with (
            local.open("rb") as source,
            self._publishing(target, lambda file: _copy(source, file)) as temporary,
        ):
            os.replace(temporary, target)

    def write(
        self,
        path: str,
        blocks: Iterable[Block],
        aside: Path,  # noqa: ARG002 - nothing waits there
        *,
        keep: bool = False,  # noqa: ARG002
    ) -> bool:
        target = self._root / path
        with self._publishing(target, lambda file: file.writelines(blocks)) as temporary:
            os.replace(temporary, target)
        return False

    def collect(self, path: str, blocks: Iterable[Block], aside: Path) -> bool:
        return self.write(path, blocks, aside)

    def link(self, path: str, local: Path) -> bool:
        try:
            os.link(self._root / path, local)
        except OSError:  # whether the file is absent is for a reader to find out
            return False
        return True

    def delete(self, path: str) -> None:
        with self._deleting(path):
            (self._root / path).unlink(missing_ok=True)

    def delete_folder(self, path: str) -> None:
        folder = self._root / path
        with self._deleting(path):
            while folder.exists():
                with suppress(FileNotFoundError):  # another process is deleting it too
                    shutil.rmtree(folder)

    def names(self, folder: str) -> list[str]:
        self._check_root()
        try:
            found = os.listdir(self._root / folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unreadable(folder, error) from error
        return sorted(name for name in found if not name.startswith(_TEMPORARY))

    def folders(self, folder: str) -> list[str]:
        return [name for name in self.names(folder) if (self._root / folder / name).is_dir()]

    def leftovers(self, before: float) -> Iterator[str]:
        self._check_root()
        for found in self._root.rglob(f"{_TEMPORARY}*"):
            with suppress(FileNotFoundError):  # its writer has brought it to its name
                if found.stat().st_mtime < before:
                    yield str(found.relative_to(self._root))

    def _open(self, path: str) -> BinaryIO | None:
        try:
            return (self._root / path).open("rb")
        except FileNotFoundError:
            self._check_root()
            return None
        except OSError as error:
            raise self._unreadable(path, error) from error

    @contextmanager
    def _publishing(self, target: Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
        """Yield a flushed temporary file in the target's folder, which the block brings to its name."""
        self._check_root()
        temporary = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            _make_folder(target.parent)
            try:
                with open(temporary, "xb", opener=_private) as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
            _sync(target.parent)
        except OSError as error:
            raise _unwritable(target, error) from error

    @contextmanager
    def _deleting(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _unwritable(self._root / path, error) from error

    def _root_identity(self) -> tuple[int, int]:
        status = os.stat(self._root)
        return status.st_dev, status.st_ino

    def _check_root(self) -> None:
        try:
            same = self._root_identity() == self._identity
        except OSError:
            same = False
        if not same:
            raise StoreUnreadable(
                f"The workspace {self._root} is no longer the folder that was opened: it was unmounted, moved or "
                "replaced. What it holds is unknown, so nothing is sent. Bring it back, then run the task again."
            )

    def _unreadable(self, path: str, error: OSError) -> StoreUnreadable:
        return StoreUnreadable(
            f"{self._root / path} could not be read ({brief(error)}). Whether it exists is unknown, so nothing is "
            "sent. Give the workers' user access to it, then run the task again."
        )


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync(folder.parent)


def _private(path: str, flags: int) -> int:
    """Open a file that only this user can read, with any umask, because it may hold prompts and answers."""
    return os.open(path, flags, 0o600)


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    shutil.copyfileobj(source, target, 1 << 20)


def _no_hard_links(root: Path, error: OSError) -> StoreUnsafe:
    return StoreUnsafe(
        f"The file system of {root} has no hard links ({brief(error)}), so two workers could create the same record. "
        "Use a local disk or an NFS mount, or name the bucket itself (gs://, s3://, abfs://) instead of its mount."
    )


def _unwritable(target: Path, error: OSError) -> StoreError:
    if error.errno in _NOT_ALLOWED:
        return StoreError(f"{target} may not be written ({brief(error)}). Let the workers' user write there.")
    return StoreUnavailable(
        f"{target} could not be written ({brief(error)}). Free space or repair the disk, then run the task again: "
        "nothing that was recorded before is lost."
    )
