"""The staging folder in Cloud Storage: request files go in, answer files come out.

Each upload has a name of its own, so repeating one harms nothing and no job ever reads another's file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from airflow_batch_llm.errors import ResultsGone, Unavailable
from airflow_batch_llm.providers.lines import split_lines
from airflow_batch_llm.providers.reach import keep_session
from airflow_batch_llm.providers.vertex.errors import http_code, judged, needing_extra
from airflow_batch_llm.providers.vertex.place import Place

# Held in memory once while a file goes up or down.
_CHUNK = 2 << 20


class Staging:
    """The folder through `google.cloud.storage`, whose own retries are safe here."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @classmethod
    def open(cls, place: Place) -> "Staging":
        with needing_extra():
            from google.cloud.storage import Client
        client: Any = Client(project=place.project, credentials=place.credentials)
        keep_session(client._http)
        return cls(client)

    def upload(self, file: Path, folder: str) -> str:
        """Stream a local file into a new folder below this one; returns its URI."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        uri = f"{folder}/{uuid4().hex}/requests.jsonl"
        blob = self._blob(uri)
        blob.chunk_size = _CHUNK
        with judged():
            blob.upload_from_filename(file, content_type="application/jsonl", retry=DEFAULT_RETRY)
        return uri

    def delete(self, uri: str) -> None:
        """Delete one file; one that is gone already is no error."""
        with judged():
            try:
                self._blob(uri).delete()
            except Exception as error:
                if http_code(error) != 404:
                    raise

    def answers(self, folder: str) -> list[Any]:
        """The answer files below a folder: a long job leaves several. `ResultsGone` if the bucket is gone."""
        bucket, _, prefix = folder.removeprefix("gs://").partition("/")
        with judged():
            try:
                listed = list(self._client.list_blobs(bucket, prefix=f"{prefix.rstrip('/')}/"))
            except Exception as error:
                if http_code(error) == 404:
                    raise ResultsGone(f"The bucket {bucket!r}, which held the answers, is gone.") from None
                raise
        return [blob for blob in listed if blob.name.endswith(".jsonl")]

    def lines(self, file: Any) -> Iterator[bytes]:
        """The lines of one answer file, streamed."""
        return split_lines(_chunks(file))

    def close(self) -> None:
        self._client.close()

    def _blob(self, uri: str) -> Any:
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        return self._client.bucket(bucket).blob(name)


def _chunks(file: Any) -> Iterator[bytes]:
    reader = file.open("rb", chunk_size=_CHUNK)
    read = 0
    while chunk := _read(reader, file.name):
        read += len(chunk)
        if file.size is not None and read > file.size:
            break  # what comes is not that file, and may never end
        yield chunk
    # A line that was cut in the middle would pass for a bad row, and that row would be paid again.
    if file.size is not None and read != file.size:
        raise Unavailable(
            f"The answer file {file.name!r} gave {read} bytes and not its {file.size}. Read it again."
        )


def _read(reader: Any, name: str) -> bytes:
    with judged():
        try:
            chunk: bytes = reader.read(_CHUNK)
            return chunk
        except Exception as error:
            if http_code(error) == 404:
                raise ResultsGone(f"The answer file {name!r} is gone.") from None
            raise
