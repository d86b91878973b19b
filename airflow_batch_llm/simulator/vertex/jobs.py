"""A batch prediction job: its creation, the import of its input, and how it reads and writes files or tables."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from airflow_batch_llm.simulator.bodies import MEGABYTE, lines, parse
from airflow_batch_llm.simulator.controls import BatchFault, batch_fault, rfc3339
from airflow_batch_llm.simulator.database import Batch, BatchPhase, RowFate
from airflow_batch_llm.simulator.execution import INPUT
from airflow_batch_llm.simulator.vendor import Prepared, Refusal, Rejected
from airflow_batch_llm.simulator.vertex.bucket import (
    TABLE,
    Bucket,
    JsonApiTables,
    StorageError,
    file_slices,
    output_fields,
    output_row,
)
from airflow_batch_llm.simulator.vertex.rows import PREDICTIONS

IMPORT_FAILED = 3
_DEEPEST = 15
_MOST_ROWS = 200_000
_MOST_BYTES = 1 << 30
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_SCHEMAS = ("responseSchema", "responseJsonSchema", "response_schema", "response_json_schema")


class ImportFailure(Exception):
    """The file cannot be imported."""


def import_file(source: Path, target: Path, *, is_table: bool = False) -> int:
    """Check the rows and write them as Vertex will echo them. Returns how many there are.

    The columns of a table have types, so nothing of a row is coerced. Whether the rules hold for its requests is not
    documented; the stricter way is taken.
    """
    if source.stat().st_size > _MOST_BYTES and not is_table:
        raise ImportFailure("the input is larger than 1 GB")
    columns = _Columns()
    number = 0
    with target.open("wb", buffering=MEGABYTE) as file:
        for number, line in enumerate(lines(source), 1):
            if number > _MOST_ROWS:
                raise ImportFailure(f"the input has more than {_MOST_ROWS} rows")
            row = _row(line, number)
            try:
                columns.add({"request": row["request"]} if is_table else row)
            except ImportFailure as failure:
                raise ImportFailure(f"{failure} (row {number})") from None
            file.write(orjson.dumps(row if is_table else _coerced(row)) + b"\n")
    if number == 0:
        raise ImportFailure("the input is empty")
    return number


def _row(line: bytes, number: int) -> dict[str, Any]:
    try:
        row = parse(line)
    except ValueError as error:
        raise ImportFailure(f"row {number} is not JSON") from error
    if not isinstance(row, dict) or not isinstance(row.get("request"), dict):
        raise ImportFailure(f"row {number} has no request")
    return row


def _coerced(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: orjson.loads(value.lstrip("0") or "0" if value.isdigit() else value)
        if isinstance(value, str) and _NUMBER.fullmatch(value)
        else value
        for key, value in row.items()
    }


class _Columns:
    """The type of every key path that was met."""

    def __init__(self) -> None:
        self._types: dict[str, str] = {}
        self._legal: set[str] = set()

    def add(self, row: dict[str, Any]) -> None:
        self._object(row, "", 1)

    def _object(self, value: dict[str, Any], path: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise ImportFailure(f"nesting is deeper than {_DEEPEST} levels")
        if not value:
            raise ImportFailure(f"the object at {path} is empty")
        for key, part in value.items():
            if key not in self._legal:
                if not _COLUMN.fullmatch(key):
                    raise ImportFailure(f"{key!r} is not a legal column name")
                self._legal.add(key)
            self._value(part, f"{path}.{key}", depth)

    def _value(self, value: Any, path: str, depth: int) -> None:
        kind = _kind(value)
        if kind == "null":
            if any(f".{name}." in path for name in _SCHEMAS):
                raise ImportFailure(f"null at {path}")
            return
        if self._types.setdefault(path, kind) != kind:
            raise ImportFailure(f"{path} is both {self._types[path]} and {kind}")
        if kind == "object":
            self._object(value, path, depth + 1)
        elif kind == "array":
            for part in value:
                if part is None:
                    raise ImportFailure(f"null in the list at {path}")
                self._value(part, f"{path}[]", depth)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


_MODEL = re.compile(r"publishers/(google/models/|anthropic/models/claude-)")
_LABEL = re.compile(r"[\w-]{0,63}")
_STATES = {
    BatchPhase.ACCEPTED: "JOB_STATE_PENDING",
    BatchPhase.RUNNING: "JOB_STATE_RUNNING",
    BatchPhase.FINISHING: "JOB_STATE_RUNNING",
    BatchPhase.CANCELING: "JOB_STATE_CANCELLING",
    BatchPhase.REJECTED: "JOB_STATE_FAILED",
}
_OF_CLAUDE = ("custom_id", "request", "response", "status")
_ENDS = {RowFate.EXPIRED: "JOB_STATE_EXPIRED", RowFate.CANCELED: "JOB_STATE_CANCELLED"}


def job_facts(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a new job. Raises `Refusal` for faults that the API sees at once, which are few."""
    if not body.get("displayName"):
        raise Refusal(400, None, "displayName is required.")
    model = str(body.get("model") or "")
    if not _MODEL.search(model) or "no-such" in model:
        raise Refusal(404, None, f"Publisher Model `{model}` not found.")
    uris, prefix = _places(body)
    labels = body.get("labels") or {}
    for text in (*labels, *labels.values()):
        if not _LABEL.fullmatch(text) or text != text.lower():
            raise Refusal(
                400, None, "Label keys and values are at most 63 lower-case letters, digits, _ and -."
            )
    return {
        "display_name": body["displayName"],
        "model": model,
        "labels": labels,
        "uris": uris,
        "prefix": prefix,
    }


def is_claude(model: str) -> bool:
    return "publishers/anthropic/" in model


def _places(body: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the URIs that are read, and the one below which is written."""
    source = body.get("inputConfig") or {}
    target = body.get("outputConfig") or {}
    if "bigquerySource" in source and "bigqueryDestination" in target:
        uris = source["bigquerySource"].get("inputUri") or []
        output = str(target["bigqueryDestination"].get("outputUri") or "")
        scheme = TABLE
    else:
        uris = (source.get("gcsSource") or {}).get("uris") or []
        output = (target.get("gcsDestination") or {}).get("outputUriPrefix") or ""
        scheme = "gs://"
    uris = [uris] if isinstance(uris, str) else uris
    if not uris or not all(str(uri).startswith(scheme) for uri in [*uris, output]):
        raise Refusal(400, None, f"The URIs of the input and the output must begin with {scheme}")
    if scheme == TABLE and "." not in output:
        raise Refusal(501, None, "The simulator makes tables, and no datasets: name one in outputUri.")
    expected = _config(uris, output)
    for name, kind, given in (
        ("inputConfig", "instancesFormat", source),
        ("outputConfig", "predictionsFormat", target),
    ):
        if given.get(kind) != expected[name][kind]:
            raise Refusal(501, None, f"The simulator knows no {kind}={given.get(kind)!r} here.")
    return uris, output


def bring(batch: Batch, bucket: Bucket, tables: JsonApiTables, folder: Path) -> Prepared | Rejected:
    """Import the job's input."""
    if told := batch_fault(batch.facts["faults"], BatchFault.REJECT):
        code = int(told.code) if told.code else IMPORT_FAILED
        return _failed(code, told.message or "Failed to import data. The simulator was told to refuse it.")
    raw = folder / "source.jsonl"
    facts: dict[str, Any] = {}
    try:
        with raw.open("wb", buffering=MEGABYTE) as file:
            for uri in batch.facts["uris"]:
                if uri.startswith(TABLE):
                    facts["columns"] = tables.download(uri, batch.facts["location"], file)
                else:
                    bucket.download(uri, file)
                file.write(b"\n")
        facts["total"] = import_file(raw, folder / INPUT, is_table="columns" in facts)
    except StorageError as error:
        return _failed(error.code, str(error))
    except ImportFailure as error:
        (folder / INPUT).unlink(missing_ok=True)
        return _failed(IMPORT_FAILED, f"Failed to import data: {error}")
    finally:
        raw.unlink(missing_ok=True)
    return Prepared(facts=facts)


def _failed(code: int, message: str) -> Rejected:
    return Rejected(facts={"error": {"code": code, "message": message}})


def deliver(batch: Batch, bucket: Bucket, folder: Path, shard_rows: int) -> dict[str, Any]:
    """Write the predictions below the output prefix, in several files when there are many."""
    # The folder is named after the moment the job began to run, which is not its createTime.
    moment = rfc3339(batch.facts.get("running_at") or batch.facts["finishing_at"])
    directory = f"{batch.facts['prefix'].rstrip('/')}/prediction-model-{moment}"
    path = folder / f"{PREDICTIONS}.jsonl"
    path.touch()
    shards = list(_shards(path, shard_rows))
    for number, (first, count) in enumerate(shards, 1):
        last = number == len(shards)
        name = f"{PREDICTIONS}.jsonl" if last else f"incremental_{PREDICTIONS}_{number:05d}.jsonl"
        bucket.upload(file_slices(path, first, count), f"{directory}/{name}")
    return {"directory": directory}


def fill(batch: Batch, tables: JsonApiTables, folder: Path) -> dict[str, Any]:
    """Write the predictions into a table. It is named here where the job names a dataset only."""
    project, dataset, *named = batch.facts["prefix"].removeprefix(TABLE).split(".")
    place = f"{TABLE}{project}.{dataset}"
    moment = rfc3339(batch.facts.get("running_at") or batch.facts["finishing_at"]) or ""
    table = named[0] if named else f"{PREDICTIONS}_{re.sub('[^0-9]', '_', moment)}"
    fields = output_fields(batch.facts["columns"])
    if is_claude(batch.facts["model"]):
        fields = [field for field in fields if field["name"] in _OF_CLAUDE]
    path = folder / f"{PREDICTIONS}.jsonl"
    path.touch()
    tables.upload((output_row(line, fields) for line in lines(path)), f"{place}.{table}", fields)
    return {"dataset": place, "table": table}


def _shards(path: Path, rows: int) -> Iterator[tuple[int, int]]:
    """Yield the offset and the bytes of each shard. There is at least one."""
    first = position = count = 0
    with path.open("rb", buffering=MEGABYTE) as file:
        for line in file:
            if count == rows:
                yield first, position - first
                first, count = position, 0
            position += len(line)
            count += 1
    yield first, position - first


def job_state(batch: Batch) -> str:
    if batch.phase is not BatchPhase.ENDED:
        return _STATES[batch.phase]
    ending = batch.facts.get("ending")
    if ending:
        return _ENDS[RowFate(ending["outcome"])]
    partial = batch_fault(batch.facts["faults"], BatchFault.PARTIAL)
    return "JOB_STATE_PARTIALLY_SUCCEEDED" if partial else "JOB_STATE_SUCCEEDED"


def job_wire(batch: Batch) -> dict[str, Any]:
    """Return the job as the API shows it: 64-bit integers are strings, absent fields are left out."""
    facts = batch.facts
    place = f"projects/{facts['project']}/locations/{facts['location']}"
    update = facts.get("ended_at") or facts.get("canceling_at") or facts.get("running_at") or batch.created_at
    job: dict[str, Any] = {
        "name": f"{place}/batchPredictionJobs/{batch.id}",
        "displayName": facts["display_name"],
        "model": facts["model"],
        **_config(facts["uris"], facts["prefix"]),
        "state": job_state(batch),
        "createTime": rfc3339(batch.created_at),
        "updateTime": rfc3339(update),
        "labels": facts["labels"],
    }
    for name, key in (("startTime", "running_at"), ("endTime", "ended_at")):
        if key in facts:
            job[name] = rfc3339(facts[key])
    if "directory" in facts:
        job["outputInfo"] = {"gcsOutputDirectory": facts["directory"]}
    if "table" in facts:
        job["outputInfo"] = {"bigqueryOutputDataset": facts["dataset"], "bigqueryOutputTable": facts["table"]}
    if "error" in facts:
        job["error"] = facts["error"]
    if (batch.phase is BatchPhase.ENDED or "outputInfo" in job) and "outcomes" in facts:
        job["completionStats"] = _stats(facts["outcomes"])
    return job


def _config(uris: list[str], output: str) -> dict[str, Any]:
    if output.startswith(TABLE):
        return {
            "inputConfig": {"instancesFormat": "bigquery", "bigquerySource": {"inputUri": uris[0]}},
            "outputConfig": {
                "predictionsFormat": "bigquery",
                "bigqueryDestination": {"outputUri": output},
            },
        }
    return {
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": uris}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": output}},
    }


def _stats(outcomes: Mapping[str, int]) -> dict[str, str]:
    undone = outcomes.get(RowFate.EXPIRED, 0) + outcomes.get(RowFate.CANCELED, 0)
    return {
        "successfulCount": str(outcomes.get(RowFate.SUCCEEDED, 0)),
        "failedCount": str(outcomes.get(RowFate.ERRORED, 0)),
        "incompleteCount": str(undone or -1),
    }
