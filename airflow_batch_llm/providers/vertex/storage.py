"""Write the requests of a job, and find and read its answers: files in Cloud Storage, or tables in BigQuery."""

import datetime as dt
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import orjson

from airflow_batch_llm.errors import InputError, Refused, ResultsGone, Unavailable, raise_alone
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.incoming import split_lines
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
        """Return the place of requests and answers: a folder in Cloud Storage, without a slash at its end, or a dataset."""
        staging = (self.chosen_staging or "").rstrip("/")
        scheme, _, name = staging.partition("://")
        if scheme == "bq" and len(name.split(".")) == 2 and all(name.split(".")):
            return staging
        if scheme != "gs" or not urlsplit(staging).netloc:
            raise InputError(
                "Vertex reads batches from Cloud Storage or BigQuery. Name a folder or a dataset that it may use:"
                " staging='gs://bucket/folder' or staging='bq://project.dataset'."
            )
        return staging

    @property
    def has_bucket(self) -> bool:
        """Return whether requests and answers are in Cloud Storage."""
        return (self.chosen_staging or "").startswith("gs://")

    def attachment(self, name: str) -> str:
        """Return the URI of an attachment."""
        return f"{self.staging}/attachments/{name}"

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


class Staging(Protocol):
    """Requests and answers in storage, by URI."""

    def upload(self, file: Path, place: str, token: str) -> str:
        """Stream a shard's requests to a new name at this place. Returns its URI."""

    def delete(self, uri: str) -> None:
        """Delete an upload. A missing upload is not an error."""

    def delete_batch(self, upload: str, output: str | None) -> None:
        """Delete the requests and the answers of a job."""

    def lines(self, output: str, *, promised: bool) -> Iterator[bytes]:
        """Stream the result lines of an output. Raises `ResultsGone` if promised lines are missing."""

    def close(self) -> None: ...


TABLE = "bq://"


def files(upload: str, unique: str) -> dict[str, Any]:
    """Return where a job reads an upload and writes its answers. Two jobs must not write to one place."""
    if upload.startswith(TABLE):
        place, _, name = upload.rpartition(".")
        output = f"{place}.{name.replace(_REQUESTS_TABLE, _ANSWERS_TABLE, 1)}_{unique}"
        return {
            "input_config": {"instances_format": "bigquery", "bigquery_source": {"input_uri": upload}},
            "output_config": {
                "predictions_format": "bigquery",
                "bigquery_destination": {"output_uri": output},
            },
        }
    prefix = f"{upload.rpartition('/')[0]}/{unique}"
    return {
        "input_config": {"instances_format": "jsonl", "gcs_source": {"uris": [upload]}},
        "output_config": {"predictions_format": "jsonl", "gcs_destination": {"output_uri_prefix": prefix}},
    }


# The bytes that are in memory while a file is uploaded or downloaded.
_CHUNK = 2 << 20
_REQUESTS = "requests.jsonl"


class Bucket:
    """Files through `google.cloud.storage`, whose own retries are safe here."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @classmethod
    def open(cls, place: StoragePlace) -> "Bucket":
        with needing_extra():
            from google.cloud.storage import Client
        client: Any = Client(project=place.project, credentials=place.credentials)
        keep_session(client._http)
        return cls(client)

    def upload(self, file: Path, place: str, token: str) -> str:
        return self.store_file(file, f"{place}/{token}/{uuid4().hex}/{_REQUESTS}", "application/jsonl")

    def store_file(self, file: Path, uri: str, media_type: str) -> str:
        """Stream a file into an object. Returns its URI."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        blob = self._blob(uri)
        blob.chunk_size = _CHUNK
        with judged():
            blob.upload_from_filename(file, content_type=media_type, retry=DEFAULT_RETRY)
        return uri

    def find_files(self, beginning: str) -> dict[str, list[str]]:
        """Find the attachments whose URIs begin so. Returns their URIs by their names.

        A repeated upload writes the same object, so each name has one URI.
        """
        bucket, _, prefix = beginning.removeprefix("gs://").partition("/")
        with judged():
            found = [blob.name for blob in self._client.list_blobs(bucket, prefix=prefix)]
        return {name.rpartition("/")[2]: [f"gs://{bucket}/{name}"] for name in found}

    def delete(self, uri: str) -> None:
        with judged():
            try:
                self._blob(uri).delete()
            except Exception as error:
                if http_code(error) != 404:
                    raise

    def delete_batch(self, upload: str, output: str | None) -> None:
        # The upload has its own folder, below which the job has written, too.
        made, _, name = upload.rpartition("/")
        for folder in (made if name == _REQUESTS else "", output):
            if folder:
                for blob in self._objects(folder):
                    self.delete(f"gs://{blob.bucket.name}/{blob.name}")

    def lines(self, output: str, *, promised: bool) -> Iterator[bytes]:
        """Stream the lines of the answer files below a folder: a long job leaves several."""
        files = [blob for blob in self._objects(output) if blob.name.endswith(".jsonl")]
        if not files and promised:
            raise ResultsGone(f"Nothing is left at {output}.")
        for file in files:
            yield from split_lines(_chunks(file))

    def _objects(self, folder: str) -> list[Any]:
        bucket, _, prefix = folder.removeprefix("gs://").partition("/")
        with judged():
            try:
                return list(self._client.list_blobs(bucket, prefix=f"{prefix.rstrip('/')}/"))
            except Exception as error:
                if http_code(error) == 404:
                    raise ResultsGone(f"The bucket {bucket!r}, which held the answers, is gone.") from None
                raise

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
    # A truncated line would count as a bad row, and the row would be paid again.
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


_REQUESTS_TABLE, _ANSWERS_TABLE = "llm_requests", "llm_answers"
#: A job may wait for 72 hours and then run for 24. BigQuery drops a table that no run has dropped by then.
_REQUESTS_LIFETIME, _ANSWERS_LIFETIME = dt.timedelta(days=7), dt.timedelta(days=30)
_COLUMNS = ("custom_id", "status", "response")
_PAGE_ROWS = 5_000
#: A load that fails for one of these reasons is tried again.
_PASSING = frozenset({"backendError", "internalError", "quotaExceeded", "rateLimitExceeded", "timeout"})


def requests_table(place: str, token: str) -> str:
    """Return the URI of a new table for the requests of a shard."""
    return f"{place}.{_REQUESTS_TABLE}_{token.replace('-', '_')}_{uuid4().hex[:12]}"


class Tables:
    """Tables through `google.cloud.bigquery`, whose own retries are safe here: each load has a table of its own."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @classmethod
    def open(cls, place: StoragePlace) -> "Tables":
        with needing_extra():
            from google.cloud.bigquery import Client
        client = Client(project=place.project, credentials=place.credentials)
        keep_session(client._http)
        return cls(client)

    def upload(self, file: Path, place: str, token: str) -> str:
        from google.cloud.bigquery import LoadJobConfig, SchemaField, SourceFormat, Table

        uri = requests_table(place, token)
        schema = [SchemaField("custom_id", "STRING"), SchemaField("request", "JSON")]
        table = Table(uri.removeprefix(TABLE), schema=schema)
        table.expires = dt.datetime.now(dt.UTC) + _REQUESTS_LIFETIME
        config = LoadJobConfig(source_format=SourceFormat.NEWLINE_DELIMITED_JSON, schema=schema)
        with judged():
            made = self._client.create_table(table, exists_ok=True)
            load = {**config.to_api_repr()["load"], "destinationTable": table.reference.to_api_repr()}
            job = {"projectId": self._client.project, "jobId": uuid4().hex, "location": made.location}
            self._send(file, {"jobReference": job, "configuration": {"load": load}})
            _await_load(self._client.get_job(job["jobId"], location=made.location))
        return uri

    def _send(self, file: Path, job: Mapping[str, Any]) -> None:
        """Begin a load job. The SDK's own call holds 100 MB of the file in memory, several times."""
        from google.resumable_media.requests import ResumableUpload

        base = self._client._connection.API_BASE_URL
        url = f"{base}/upload/bigquery/v2/projects/{self._client.project}/jobs?uploadType=resumable"
        session = self._client._http
        make: Any = ResumableUpload  # untyped
        upload = make(url, _CHUNK)
        with file.open("rb") as lines:
            upload.initiate(session, lines, job, "*/*")
            while not upload.finished:
                upload.transmit_next_chunk(session)

    def delete(self, uri: str) -> None:
        with judged():
            self._client.delete_table(uri.removeprefix(TABLE), not_found_ok=True)

    def delete_batch(self, upload: str, output: str | None) -> None:
        for uri in (upload, output):
            if uri:
                self.delete(uri)

    def lines(self, output: str, *, promised: bool) -> Iterator[bytes]:
        """Stream the rows of an output table as result lines, and set the table's expiration."""
        try:
            with _table_there(output):
                table = self._client.get_table(output.removeprefix(TABLE))
        except ResultsGone:
            if promised:
                raise
            return
        fields = [field for field in table.schema if field.name in _COLUMNS]  # the cells come in this order
        if len(fields) < len(_COLUMNS):
            raise Unavailable(f"The table {output} lacks columns that a job writes: {', '.join(_COLUMNS)}.")
        self._expire(table)
        rows = self._client.list_rows(table, selected_fields=fields, page_size=_PAGE_ROWS)
        batches = rows.to_arrow_iterable()
        while True:
            with _table_there(output):
                batch = next(batches, None)
            if batch is None:
                return
            yield from map(answer_line, batch.to_pylist())

    def _expire(self, table: Any) -> None:
        """Set a table's expiration. An account without the right to do so can still read the table."""
        if table.expires is not None:
            return
        table.expires = dt.datetime.now(dt.UTC) + _ANSWERS_LIFETIME
        try:
            with judged():
                self._client.update_table(table, ["expires"])
        except Refused:
            return

    def close(self) -> None:
        self._client.close()


def _await_load(job: Any) -> None:
    """Wait for a load. Its messages may quote a row, so that only its reason is passed on."""
    try:
        job.result()
    except Exception:
        told = job.error_result
        if not told:
            raise
        reason = str(told.get("reason"))
        failed = f"BigQuery did not load the requests: {reason}. The job {job.job_id} holds the full message."
        raise_alone(Unavailable(failed) if reason in _PASSING else Refused(failed))


@contextmanager
def _table_there(output: str) -> Iterator[None]:
    with judged():
        try:
            yield
        except Exception as error:
            if http_code(error) == 404:
                raise ResultsGone(f"The table {output} is gone.") from None
            raise


def answer_line(row: Mapping[str, Any]) -> bytes:
    """Return a row as a result line. A JSON text has line ends between its parts only."""
    response = (row["response"] or "null").replace("\n", " ")
    beside = {name: row[name] for name in ("custom_id", "status") if row.get(name)}
    return b'{"response":%b,%b' % (response.encode(), (orjson.dumps({**beside, "": None}))[1:])
