"""Read and write Cloud Storage and BigQuery as the simulator's Vertex does: an object or a table, through a stream.

They are clients of emulators (or anything else that speaks these APIs) at configured URLs, without credentials.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import quote

import orjson

from airflow_batch_llm.simulator.bodies import MEGABYTE


class StorageError(Exception):
    """An object or a table could not be read or written. `code` is the gRPC code that a job fails with."""

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


#: The URI of a table, or of a dataset, begins so.
TABLE = "bq://"

Field = Mapping[str, Any]
"""A column in the words of BigQuery's REST API."""

_RESERVED = frozenset({"response", "status", "processed_time"})
_NOT_COPIED = frozenset({"RECORD", "STRUCT", "RANGE", "DATETIME", "GEOGRAPHY"})
_ROWS = 5_000


class JsonApiTables:
    """The BigQuery REST API over plain HTTP."""

    def __init__(self, url: str | None) -> None:
        self._url = url.rstrip("/") if url else None

    def download(self, uri: str, location: str, target: IO[bytes]) -> list[Field]:
        """Write the rows of a table as lines of JSON. Returns the columns that are copied to the output."""
        name = _TableName.of(uri)
        self._check_location(name, location)
        table = self._json("GET", name.path, uri)
        fields = table["schema"]["fields"]
        _check_columns(uri, fields)
        query, token = f"maxResults={_ROWS}&formatOptions.useInt64Timestamp=true", ""
        while True:
            after = f"&pageToken={quote(token, safe='')}" if token else ""
            page = self._json("GET", f"{name.path}/data?{query}{after}", uri)
            for row in page.get("rows") or ():
                cells = zip(fields, (cell["v"] for cell in row["f"]), strict=True)
                values = {field["name"]: _value(field, text) for field, text in cells if _is_copied(field)}
                target.write(orjson.dumps(values) + b"\n")
            token = page.get("pageToken") or ""
            if not token:
                return [field for field in fields if _is_copied(field)]

    def upload(self, source: Iterator[bytes], uri: str, fields: Sequence[Field]) -> None:
        """Make or replace a table of these columns from lines of JSON."""
        import httpx

        name = _TableName.of(uri)
        load = {
            "sourceFormat": "NEWLINE_DELIMITED_JSON",
            "schema": {"fields": fields},
            "destinationTable": {
                "projectId": name.project,
                "datasetId": name.dataset,
                "tableId": name.table,
            },
            "writeDisposition": "WRITE_TRUNCATE",
        }
        jobs = f"/bigquery/v2/projects/{name.project}/jobs"
        try:
            opened = httpx.post(
                f"{self._base()}/upload{jobs}?uploadType=resumable",
                json={"configuration": {"load": load}},
                timeout=60,
                trust_env=False,
            )
            _check_table(opened.status_code, uri)
            answer = httpx.put(opened.headers["location"], content=source, timeout=60, trust_env=False)
        except httpx.TransportError as error:
            raise StorageError(13, f"BigQuery does not answer: {type(error).__name__}") from error
        _check_table(answer.status_code, uri)
        job = answer.json()
        while job["status"]["state"] != "DONE":
            time.sleep(0.02)
            job = self._json("GET", f"{jobs}/{job['jobReference']['jobId']}", uri)
        if told := job["status"].get("errorResult"):
            code = 5 if told.get("reason") == "notFound" else 13
            raise StorageError(code, f"BigQuery did not take the rows: {told.get('message')}")

    def _check_location(self, name: "_TableName", location: str) -> None:
        """Refuse a dataset outside of the job's region, unless the job is at `global`."""
        dataset = self._json(
            "GET", name.path.partition("/tables/")[0], f"{TABLE}{name.project}.{name.dataset}"
        )
        lies = str(dataset.get("location") or "")
        if location != "global" and lies.lower() != location.lower():
            raise StorageError(9, f"The dataset {name.dataset} is in {lies}, and the job is in {location}.")

    def _json(self, method: str, path: str, uri: str) -> Any:
        import httpx

        try:
            answer = httpx.request(method, self._base() + path, timeout=60, trust_env=False)
        except httpx.TransportError as error:
            raise StorageError(13, f"BigQuery does not answer: {type(error).__name__}") from error
        _check_table(answer.status_code, uri)
        return orjson.loads(answer.content)

    def _base(self) -> str:
        if self._url is None:
            raise StorageError(9, "BigQuery is not reached: start the simulator with --bigquery-url.")
        return self._url


@dataclass(frozen=True, slots=True, kw_only=True)
class _TableName:
    project: str
    dataset: str
    table: str

    @classmethod
    def of(cls, uri: str) -> "_TableName":
        parts = uri.removeprefix(TABLE).rsplit(".", 2)
        if len(parts) != 3:
            raise StorageError(3, f"{uri} names no table: bq://project.dataset.table")
        return cls(project=parts[0], dataset=parts[1], table=parts[2])

    @property
    def path(self) -> str:
        return f"/bigquery/v2/projects/{self.project}/datasets/{self.dataset}/tables/{self.table}"


def output_fields(copied: Sequence[Field]) -> list[Field]:
    """Return the columns of an output table: those that are copied, and Vertex's own."""
    (request,) = (field for field in copied if field["name"] == "request")
    return [
        *copied,
        {"name": "response", "type": request["type"]},
        {"name": "status", "type": "STRING"},
        {"name": "processed_time", "type": "TIMESTAMP"},
    ]


def output_row(line: bytes, fields: Sequence[Field]) -> bytes:
    """Return a prediction as a line of JSON for these columns. One that is no JSON has NULL in all of them.

    A column holds UTF-8, so a lone surrogate does not survive.
    """
    try:
        row = orjson.loads(json.dumps(json.loads(line), ensure_ascii=False).encode(errors="replace"))
    except ValueError:
        row = {}
    cells = {field["name"]: _cell(field, row.get(field["name"])) for field in fields}
    return orjson.dumps(cells) + b"\n"


def _cell(field: Field, value: Any) -> Any:
    is_text = field["type"] == "STRING" and isinstance(value, dict | list)
    return orjson.dumps(value).decode() if is_text else value


def _check_columns(uri: str, fields: Sequence[Field]) -> None:
    types = {field["name"].lower(): field["type"] for field in fields}
    if types.get("request") not in ("JSON", "STRING"):
        raise StorageError(3, f"Failed to import data: {uri} has no column request of type JSON or STRING.")
    if taken := sorted(_RESERVED & types.keys()):
        raise StorageError(3, f"Failed to import data: {uri} has the reserved column {taken[0]}.")


def _is_copied(field: Field) -> bool:
    return field["type"] not in _NOT_COPIED and field.get("mode") != "REPEATED"


def _value(field: Field, text: Any) -> Any:
    """Return a cell as the REST API writes it, in JSON's own types."""
    if text is None:
        return None
    match field["type"]:
        case "INTEGER" | "INT64":
            return int(text)
        case "FLOAT" | "FLOAT64":
            return float(text)
        case "BOOLEAN" | "BOOL":
            return text == "true"
        case "TIMESTAMP":
            return datetime.fromtimestamp(int(text) / 1e6, UTC).isoformat()
        case "JSON":
            return _parsed(text)
        case _:
            return _parsed(text) if field["name"] == "request" else text


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError as error:
        raise StorageError(3, "Failed to import data: a request is not JSON.") from error


def _check_table(status: int, uri: str) -> None:
    if status == 404:
        raise StorageError(5, f"Not found: {uri}")
    if status >= 400:
        raise StorageError(7 if status in (401, 403) else 13, f"BigQuery answered {status} for {uri}")
