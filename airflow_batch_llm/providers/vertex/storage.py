"""Find and open the request and answer files of a job in Cloud Storage."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from airflow_batch_llm.errors import InputError, ResultsGone, Unavailable
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.lines import split_lines
from airflow_batch_llm.providers.reach import keep_session
from airflow_batch_llm.providers.vertex.errors import http_code, judged, needing_extra

DEFAULT_LOCATION = "us-central1"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_MULTI_REGIONS = frozenset({"us", "eu"})


@dataclass(frozen=True, kw_only=True)
class StoragePlace:
    """The options of an `Access` in Google's terms."""

    location: str
    base_url: str | None
    chosen_project: str | None
    chosen_staging: str | None
    chosen_credentials: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, access: Access) -> "StoragePlace":
        options = access.options
        return cls(
            location=options.get("location") or DEFAULT_LOCATION,
            base_url=access.base_url,
            chosen_project=options.get("project"),
            chosen_staging=options.get("staging"),
            chosen_credentials=options.get("credentials"),
        )

    @property
    def staging(self) -> str:
        """The folder in Cloud Storage below which requests and answers lie, without a slash at its end."""
        staging = self.chosen_staging
        if not staging or not staging.startswith("gs://") or not urlsplit(staging).netloc:
            raise InputError(
                "Vertex reads batches from Cloud Storage. Name a folder that it may use: staging='gs://bucket/folder'."
            )
        return staging.rstrip("/")

    @property
    def endpoint(self) -> str:
        """The host of the API, with a scheme where the user gave one."""
        if self.base_url:
            return self.base_url.rstrip("/")
        if self.location == "global":
            return "aiplatform.googleapis.com"
        if self.location in _MULTI_REGIONS:
            return f"aiplatform.{self.location}.rep.googleapis.com"
        return f"{self.location}-aiplatform.googleapis.com"

    @property
    def host(self) -> str | None:
        """The host that answers, where it is not Google's."""
        if not self.base_url:
            return None
        host = urlsplit(self.base_url).hostname
        return None if host is None or host.endswith(".googleapis.com") else host

    @property
    def parent(self) -> str:
        """The project and location that own the jobs, as the API spells them."""
        return f"projects/{self.project}/locations/{self.location}"

    @property
    def project(self) -> str:
        if self.chosen_project:
            return self.chosen_project
        _, project = self._found
        if not project:
            raise InputError("No Google Cloud project is set. Name it: project='…', or in the connection.")
        return project

    @property
    def credentials(self) -> Any:
        """Credentials of google.auth: the user's own, none for a server that is not Google's, or the environment's."""
        if self.chosen_credentials is not None:
            return self.chosen_credentials
        credentials, _ = self._found
        return credentials

    @cached_property
    def _found(self) -> tuple[Any, str | None]:
        with needing_extra():
            import google.auth
            from google.auth.credentials import AnonymousCredentials

        if self.chosen_credentials is not None:
            return self.chosen_credentials, getattr(self.chosen_credentials, "project_id", None)
        if self.host is not None:
            anonymous: Any = AnonymousCredentials  # untyped
            return anonymous(), None
        found: tuple[Any, str | None] = google.auth.default(scopes=[_SCOPE])
        return found


# Held in memory once while a file goes up or down.
_CHUNK = 2 << 20
_REQUESTS = "requests.jsonl"


class Staging:
    """The folder through `google.cloud.storage`, whose own retries are safe here."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @classmethod
    def open(cls, place: StoragePlace) -> "Staging":
        with needing_extra():
            from google.cloud.storage import Client
        client: Any = Client(project=place.project, credentials=place.credentials)
        keep_session(client._http)
        return cls(client)

    def upload(self, file: Path, folder: str) -> str:
        """Stream a local file into a new folder below this one; returns its URI."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        uri = f"{folder}/{uuid4().hex}/{_REQUESTS}"
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

    def delete_batch(self, upload: str, output: str | None) -> None:
        """Delete the folder that `upload` made, below which the job has written too, and the folder of the answers."""
        made, _, name = upload.rpartition("/")
        for folder in (made if name == _REQUESTS else "", output):
            if folder:
                for blob in self._objects(folder):
                    self.delete(f"gs://{blob.bucket.name}/{blob.name}")

    def answers(self, folder: str) -> list[Any]:
        """The answer files below a folder: a long job leaves several. `ResultsGone` if the bucket is gone."""
        return [blob for blob in self._objects(folder) if blob.name.endswith(".jsonl")]

    def _objects(self, folder: str) -> list[Any]:
        bucket, _, prefix = folder.removeprefix("gs://").partition("/")
        with judged():
            try:
                return list(self._client.list_blobs(bucket, prefix=f"{prefix.rstrip('/')}/"))
            except Exception as error:
                if http_code(error) == 404:
                    raise ResultsGone(f"The bucket {bucket!r}, which held the answers, is gone.") from None
                raise

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
