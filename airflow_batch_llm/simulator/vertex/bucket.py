"""Cloud Storage as the simulator's Vertex uses it: read an object, write an object, both through a stream.

It is a client of an emulator (or anything else that speaks the JSON API) at a configured URL, without credentials.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import quote

from airflow_batch_llm.simulator.bodies import MEGABYTE


class StorageError(Exception):
    """An object could not be read or written. `code` is the gRPC code that a job fails with."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Bucket(Protocol):
    """The object store below gs://."""

    def download(self, uri: str, target: IO[bytes]) -> None: ...

    def upload(self, source: Iterator[bytes], uri: str) -> None: ...


class JsonApiBucket:
    """The Cloud Storage JSON API over plain HTTP."""

    def __init__(self, url: str | None) -> None:
        self._url = url.rstrip("/") if url else None

    def download(self, uri: str, target: IO[bytes]) -> None:
        import httpx

        bucket, name = _split(uri)
        url = f"{self._base()}/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media"
        try:
            with httpx.stream("GET", url, timeout=60, trust_env=False) as answer:
                _check(answer.status_code, uri)
                for chunk in answer.iter_bytes(MEGABYTE):
                    target.write(chunk)
        except httpx.TransportError as error:
            raise StorageError(13, f"Cloud Storage does not answer: {type(error).__name__}") from error

    def upload(self, source: Iterator[bytes], uri: str) -> None:
        import httpx

        bucket, name = _split(uri)
        url = f"{self._base()}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}"
        headers = {"content-type": "application/x-ndjson"}
        try:
            answer = httpx.post(url, content=source, headers=headers, timeout=60, trust_env=False)
        except httpx.TransportError as error:
            raise StorageError(13, f"Cloud Storage does not answer: {type(error).__name__}") from error
        _check(answer.status_code, uri)

    def _base(self) -> str:
        if self._url is None:
            raise StorageError(
                9, "Failed to get GCS bucket location: start the simulator with --storage-url."
            )
        return self._url


def _split(uri: str) -> tuple[str, str]:
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    return bucket, name


def _check(status: int, uri: str) -> None:
    if status == 404:
        raise StorageError(9, f"Failed to get GCS bucket location or object: {uri}")
    if status >= 400:
        raise StorageError(7 if status in (401, 403) else 13, f"Cloud Storage answered {status} for {uri}")


def file_slices(path: Path, first: int, count: int) -> Iterator[bytes]:
    """Yield at most `size` bytes of a file at a time, each piece from the beginning of a line."""
    with path.open("rb") as file:
        file.seek(first)
        while count > 0 and (chunk := file.read(min(count, MEGABYTE))):
            count -= len(chunk)
            yield chunk
