"""A workspace in object storage, through an fsspec file system.

A record is created by one conditional request ("only if there is none"), which the storage decides, not the client.
Clients repeat a request whose answer was lost and are then told that the record exists; so after any failure the
record is read back, and whose bytes it holds decides. Listings are never trusted for records.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from airflow_batch_llm.errors import MissingExtra, StoreError, StoreUnavailable, StoreUnreadable
from airflow_batch_llm.store.storage import Block, brief

_MB = 1 << 20
_BLOCK = 8 * _MB
#: The blocks of one upload that are in memory. Several files are uploaded at once, too.
_BLOCKS_AT_ONCE = 2
#: The clients' errors where they find no credentials. None of them says so by a class that is shared.
_WITHOUT_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "CredentialUnavailableError"}
)
_TRIES = 3  # each of them is already repeated by the client where it met an outage


class FileSystem(Protocol):
    """The part of fsspec's `AbstractFileSystem` that a workspace uses."""

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> object: ...
    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes: ...
    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> object: ...
    def rm_file(self, path: str) -> object: ...
    def info(self, path: str) -> Mapping[str, Any]: ...
    def ls(self, path: str, detail: bool = True) -> list[str]: ...
    def find(self, path: str) -> list[str]: ...
    def invalidate_cache(self) -> object: ...
    def _strip_protocol(self, path: str) -> str: ...


class SendFile(Protocol):
    """Send a local file, replacing what is there in one step, in memory that does not grow with the file."""

    def __call__(self, fs: FileSystem, local: Path, key: str) -> object: ...


def _upload_to_gcs(fs: FileSystem, local: Path, key: str) -> object:
    # gcsfs sends a small file between fixed marker lines; a file that holds such a line is cut off there. As the
    # only chunk of an upload in chunks it needs no markers.
    size = local.stat().st_size
    if 0 < size < _BLOCK:
        return fs.pipe_file(key, local.read_bytes(), chunksize=size, consistency="size")
    return fs.put_file(str(local), key, chunksize=_BLOCK, consistency="size")


def _upload_to_s3(fs: FileSystem, local: Path, key: str) -> object:
    return fs.put_file(str(local), key, chunksize=_BLOCK, max_concurrency=_BLOCKS_AT_ONCE)


def _upload_to_azure(fs: FileSystem, local: Path, key: str) -> object:
    return fs.put_file(str(local), key, max_concurrency=_BLOCKS_AT_ONCE)


def _upload_to_memory(fs: FileSystem, local: Path, key: str) -> object:
    return fs.pipe_file(key, local.read_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreKind:
    """A kind of object storage: the extra that installs its client, how a file is sent with it, and where it logs."""

    extra: str
    upload: SendFile
    loggers: tuple[str, ...] = ()


_GCS = StoreKind(extra="google", upload=_upload_to_gcs, loggers=("gcsfs", "google"))
_S3 = StoreKind(
    extra="s3", upload=_upload_to_s3, loggers=("aiobotocore", "boto3", "botocore", "s3fs", "s3transfer")
)
_AZURE = StoreKind(extra="azure", upload=_upload_to_azure, loggers=("adlfs", "azure"))
IN_MEMORY = StoreKind(extra="all", upload=_upload_to_memory)

# Storages that are known to decide a conditional creation themselves. Elsewhere clients look first and write then,
# which no probe can tell from safe when only one writer is there to try.
KINDS: Mapping[str, StoreKind] = {
    "abfs": _AZURE,
    "abfss": _AZURE,
    "az": _AZURE,
    "gcs": _GCS,
    "gs": _GCS,
    "s3": _S3,
    "s3a": _S3,
}


def default_filesystem(protocol: str, needed_by: str = "The workspace") -> FileSystem:
    """Open a file system with the credentials of the environment, and without any cache."""
    try:
        import fsspec

        fs: FileSystem = fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
        return fs
    except ImportError as error:
        raise MissingExtra(f"{needed_by} ({protocol}://)", KINDS[protocol].extra, error) from error


class ObjectStorage:
    """Objects below one prefix of a bucket."""

    def __init__(self, fs: FileSystem, uri: str, kind: StoreKind, conn_id: str | None = None) -> None:
        self._fs = fs
        self._root = fs._strip_protocol(uri).rstrip("/")
        self._kind = kind
        self._uri = uri
        self._conn_id = conn_id

    def create(self, path: str, data: bytes) -> bool:
        key, tries = self._key(path), 0
        while True:
            tries += 1
            try:
                self._fs.pipe_file(key, data, mode="create")
                return True
            except Exception as error:
                held = self.read(path)
                if held is not None:
                    return held == data
                if tries == _TRIES or _will_not_change(error):
                    raise self._unwritable(key, error) from error

    def read(self, path: str) -> bytes | None:
        key = self._key(path)
        try:
            # One request: more than one at a time would begin with a look at the size.
            return self._fs.cat_file(key, max_concurrency=1)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise _unreadable(key, error) from error

    def open_read(self, path: str) -> BinaryIO | None:
        key = self._key(path)
        try:
            version = _Version.of(self._fs, key)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise _unreadable(key, error) from error
        return io.BufferedReader(_Blocks(self._fs, key, version), _BLOCK)

    def put(self, path: str, local: Path) -> None:
        key, tries = self._key(path), 0
        while True:
            tries += 1
            try:
                self._kind.upload(self._fs, local, key)
                return
            except Exception as error:
                # The end of an upload in parts, repeated after a lost answer, finds no upload: begin a new one.
                if tries == _TRIES:
                    raise self._unwritable(key, error) from error

    def write(self, path: str, blocks: Iterable[Block], aside: Path, *, keep: bool = False) -> bool:
        # A file that is there as a whole can be sent again; blocks that are gone cannot.
        stays = False
        try:
            self.collect(path, blocks, aside)
            self.put(path, aside)
            stays = keep
        finally:
            if not stays:
                aside.unlink(missing_ok=True)
        return stays

    def collect(self, path: str, blocks: Iterable[Block], aside: Path) -> bool:  # noqa: ARG002 - it is put later
        with aside.open("wb") as file:
            file.writelines(blocks)
        return True

    def link(self, path: str, local: Path) -> bool:  # noqa: ARG002 - nothing here lies on a disk
        return False

    def delete(self, path: str) -> None:
        self._delete(self._key(path))

    def delete_folder(self, path: str) -> None:
        prefix = f"{self._key(path)}/"
        keys = [key for key in self._list(self._fs.find, prefix) if key.startswith(prefix)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self._delete, keys))

    def names(self, folder: str) -> list[str]:
        prefix = f"{self._key(folder)}/" if folder else f"{self._root}/"
        keys = self._list(partial(self._fs.ls, detail=False), prefix)
        return sorted({key.rstrip("/").removeprefix(prefix) for key in keys if key.startswith(prefix)} - {""})

    def folders(self, folder: str) -> list[str]:
        prefix = f"{self._key(folder)}/" if folder else f"{self._root}/"
        found = self._list(partial(self._fs.ls, detail=True), prefix)
        keys = [entry["name"].rstrip("/") for entry in found if entry["type"] == "directory"]
        return sorted({key.removeprefix(prefix) for key in keys if key.startswith(prefix)} - {""})

    def leftovers(self, before: float) -> Iterator[str]:  # noqa: ARG002 - an object is there as a whole or not at all
        return iter(())

    def _key(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _list(self, listing: Callable[[str], list[Any]], prefix: str) -> list[Any]:
        try:
            self._fs.invalidate_cache()
            return listing(prefix)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise _unreadable(prefix, error) from error

    def _delete(self, key: str) -> None:
        try:
            self._fs.rm_file(key)
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._unwritable(key, error) from error

    def _unwritable(self, key: str, error: Exception) -> StoreError:
        if _is_missing(error):  # an object needs no folder, so it is the bucket that is not there
            by = "" if self._conn_id is None else f", opened by the connection {self._conn_id!r}"
            return StoreError(
                f"There is no bucket or container {self._root.partition('/')[0]!r}, where the workspace {self._uri}"
                f" lies{by}. Create it, or change `workspace` to one that exists."
            )
        if _will_not_change(error):
            return StoreError(
                f"{key} may not be written ({brief(error)}). Check its bucket's name, and grant creating, replacing"
                " and deleting objects in it."
            )
        if type(error).__name__ in _WITHOUT_CREDENTIALS:
            return StoreUnavailable(
                f"{key} could not be written: no credentials were found for {self._uri} ({brief(error)}). Give"
                " this process credentials, or name an Airflow connection in `workspace`, as in s3://my_conn@bucket/folder."
                " Where the machine gives credentials, run the task again later."
            )
        return StoreUnavailable(f"{key} could not be written ({brief(error)}). Run the task again later.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    """The content of an object: its size, and the mark that the storage changes with each replacement."""

    size: int
    mark: str

    @classmethod
    def of(cls, fs: FileSystem, key: str) -> "_Version":
        fs.invalidate_cache()
        info = fs.info(key)
        if info.get("type") == "directory":
            raise FileNotFoundError(key)
        mark = info.get("generation") or info.get("ETag") or info.get("etag") or info.get("created")
        return cls(size=int(info["size"]), mark=str(mark))


class _Blocks(io.RawIOBase):
    """An object read forward in blocks. Each is checked, after it came, to belong to the content that was opened."""

    def __init__(self, fs: FileSystem, key: str, version: _Version) -> None:
        self._fs = fs
        self._key = key
        self._version = version
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._version.size)
        if end == self._position:
            return 0
        block = self._block(self._position, end)
        buffer[: len(block)] = block
        self._position = end
        return len(block)

    def readall(self) -> bytes:
        blocks = []
        while self._position < self._version.size:
            end = min(self._position + _BLOCK, self._version.size)
            blocks.append(self._block(self._position, end))
            self._position = end
        return b"".join(blocks)

    def _block(self, start: int, end: int) -> bytes:
        try:
            block = self._fs.cat_file(self._key, start=start, end=end)
            same = _Version.of(self._fs, self._key) == self._version
        except Exception as error:
            raise _unreadable(self._key, error) from error
        if not same or len(block) != end - start:
            raise StoreUnreadable(
                f"{self._key} was replaced while it was read. Read it again from its beginning."
            )
        return block


def _is_missing(error: Exception) -> bool:
    """Return whether a write found no place. adlfs lets some of Azure's own errors through."""
    if isinstance(error, FileNotFoundError):
        return not str(error.filename or "").startswith("/")  # else it is the local file that is gone
    return getattr(error, "status_code", None) == 404


def _will_not_change(error: Exception) -> bool:
    """Say whether a write was refused in a way that waiting does not cure."""
    if isinstance(error, PermissionError) or _is_missing(error):
        return True
    # gcsfs reports a missing permission as a bare OSError.
    return getattr(error, "status_code", None) == 403 or str(error).startswith("Forbidden")


def _unreadable(key: str, error: Exception) -> StoreUnreadable:
    return StoreUnreadable(
        f"{key} could not be read ({brief(error)}). Whether it exists is unknown, so nothing is sent. If access is "
        "missing, grant reading and listing in this bucket (without listing, an absent object looks forbidden); "
        "otherwise run the task again later."
    )
