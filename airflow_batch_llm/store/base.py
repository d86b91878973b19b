"""The interface between a workspace and its storage.

Absent means surely absent. A storage that cannot tell raises `StoreUnreadable`; a write whose outcome is unknown
raises `StoreUnavailable`. Nothing is ever answered from a listing that was cached.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

Block = bytes | memoryview


class Storage(Protocol):
    """One place in which bytes are kept by path. Paths are relative, `/` between their names."""

    def create(self, path: str, data: bytes) -> bool:
        """Create a record as a whole if there is none. True: it holds these bytes; False: it holds others."""

    def read(self, path: str) -> bytes | None:
        """Give all bytes of a file; None if it is surely absent."""

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
        """Give the file this second name on its own disk. False: no file, no such disk, or not allowed."""

    def delete(self, path: str) -> None:
        """Delete a file; one that is gone already is no error."""

    def delete_folder(self, path: str) -> None:
        """Delete all that lies below a folder; one that is gone already is no error."""

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
