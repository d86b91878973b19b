"""Divide a source among tasks that read it for one plan, and keep each task's rows in the run folder.

An opening is written before anything is read. It lists the settled planners and the plans in flight at that time, so
that the plan leaves out the rows that other runs buy, however long the reading takes. A partition that was read counts
once its record is created: of two tasks that read the same one, the first counts.
"""

import base64
import hashlib
import inspect
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from airflow_batch_llm.core.request import canonical
from airflow_batch_llm.core.settings import RouteFunction, Source, Stage
from airflow_batch_llm.core.value import KeyRange, Value, key_ranges, plain
from airflow_batch_llm.errors import BatchLLMError, InputError, SourceError, StoreError
from airflow_batch_llm.stage.parts import Parts, ReadsFiles, ReadsSource
from airflow_batch_llm.stage.plan.resolved import Resolved
from airflow_batch_llm.stage.plan.spool import PROMPTS_FILE, ROWS_FILE
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.warehouses.base import ReadsRanges, Target
from airflow_batch_llm.warehouses.files.source import SOURCE_URI
from airflow_batch_llm.warehouses.kind import ColumnKind, of_arrow

#: The rows of a partition are numbered from its own number times this, so their numbers follow the order of the partitions.
NUMBERED = 1 << 40

#: A version, raised when the meaning of a partition's files changes, or the rules that decide on their rows.
_FORMAT = 1

#: The functions that read a bound, by the kinds of columns that divide a table.
#: Some databases return a minimum as text, because it has no declared type.
_BOUNDS: Mapping[ColumnKind, Callable[[Any], Value]] = {
    ColumnKind.SMALLINT: int,
    ColumnKind.INTEGER: int,
    ColumnKind.BIGINT: int,
    ColumnKind.DECIMAL: lambda found: _finite(Decimal(str(found))),
    ColumnKind.DATE: lambda found: date.fromisoformat(str(found)[:10]),
    ColumnKind.TIMESTAMP: lambda found: datetime.fromisoformat(str(found)),
    ColumnKind.TIMESTAMPTZ: lambda found: datetime.fromisoformat(str(found)),
}


def _finite(number: Decimal) -> Decimal:
    """Raise `ValueError` for NaN and infinity, which PostgreSQL's NUMERIC can hold."""
    if number.is_finite():
        return number
    raise ValueError("not finite")


#: The end of a message about rows that several tasks read. If one task is cleared alone, the other rows stay as they were read.
REREAD = " Then clear the group from open, which reads it again."


class Outrun(BatchLLMError):
    """The rows that other tasks have read cannot be planned. Another run may have landed rows and deleted their files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A part of a source that one task reads: a range of a key column, or some files."""

    within: KeyRange | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The partitions of a run's source, and the runs that were in flight before they were read."""

    nonce: str
    rules: str = ""
    """The hash of the rules by which all partitions are read."""
    settled: int
    """The ticket up to which all planners on the target were settled."""
    in_flight: tuple[tuple[str, str], ...]
    """The plans of other runs that were in flight, each as its run and its nonce."""
    partitions: tuple[Partition, ...]
    schema: str = ""
    """The columns of all files together, as Arrow writes them, in base64. Empty for a table."""

    def to_json(self) -> bytes:
        """Return the opening as it is stored."""
        return orjson.dumps(asdict(self))

    @classmethod
    def read(cls, folder: RunFolder, nonce: str) -> "Opening | None":
        """Read an opening. Returns None if this run folder does not have it, or no longer has it."""
        data = folder.read_opening(nonce) if nonce else None
        if data is None:
            return None
        found = orjson.loads(data)
        partitions = tuple(
            Partition(
                within=None if one["within"] is None else KeyRange(**one["within"]), files=tuple(one["files"])
            )
            for one in found["partitions"]
        )
        in_flight = tuple((run, plan) for run, plan in found["in_flight"])
        return cls(**{**found, "partitions": partitions, "in_flight": in_flight})

    def check(self, rules: str) -> None:
        """Raise `Outrun` if the partitions are read by other rules than these."""
        if self.rules != rules:
            raise Outrun(
                "The stage has changed since its source was divided. The task that plans reads it alone."
            )

    def source(self, number: int, stage: Stage, parts: Parts) -> tuple[ReadsSource, Source]:
        """Return the reader of a partition, and the source to read with it."""
        partition = self.partitions[number]
        if not partition.files:
            return parts.source, replace(stage.source, within=partition.within)
        assert isinstance(parts.source, ReadsFiles), "the files were listed by the same source"
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.schema)))
        return _SomeFiles(files=parts.source, names=partition.files, schema=schema), stage.source


@dataclass(frozen=True, slots=True, kw_only=True)
class _SomeFiles:
    """A source of some of the files, in the needed columns of all of them."""

    files: ReadsFiles
    names: Sequence[str]
    schema: pa.Schema

    def read(self, source: Source) -> pa.RecordBatchReader:
        needed = {*(source.columns or self.schema.names), SOURCE_URI}
        schema = pa.schema([column for column in self.schema if column.name in needed])
        return self.files.read_some(self.names, schema)


def opening_of(
    stage: Stage,
    parts: Parts,
    target: Target,
    *,
    most: int,
    settled: int,
    in_flight: Sequence[tuple[str, str]],
) -> Opening:
    """Divide the source into at most `most` partitions. Raises `InputError` for a source that cannot be divided."""
    opening = Opening(nonce=secrets.token_hex(5), settled=settled, in_flight=tuple(in_flight), partitions=())
    if isinstance(parts.source, ReadsFiles):
        names = parts.source.files()
        count = min(most, len(names))
        ends = [len(names) * number // count for number in range(count + 1)]
        files = [tuple(names[first:end]) for first, end in pairwise(ends)]
        with parts.source.read(stage.source) as reader:
            schema = base64.b64encode(reader.schema.serialize()).decode()
        return replace(opening, partitions=tuple(Partition(files=some) for some in files), schema=schema)
    ranges = table_ranges(parts.source, stage.source, target.key, most)
    return replace(opening, partitions=tuple(Partition(within=one) for one in ranges))


def table_ranges(source: ReadsSource, wanted: Source, key: pa.Schema, most: int) -> list[KeyRange]:
    """Divide a table by the first column of its key that has ranges. Raises `InputError` if there is none."""
    kinds = {field.name: of_arrow(field.type) for field in key}
    column = next((name for name, kind in kinds.items() if kind in _BOUNDS), None)
    if wanted.table is None:
        hindrance = "The source is a query: make it a view and name that as source_table."
    elif column is None:
        hindrance = f"The key is {', '.join(f'{name} ({kind})' for name, kind in kinds.items())}."
    elif not isinstance(source, ReadsRanges):
        hindrance = "The source's database cannot read a range of a table."
    else:
        return key_ranges(column, _bounds(source, wanted, column, kinds[column]), most)
    raise InputError(
        f"plan_partitions={most} divides a source_table by a number, a date or a timestamp in its key, or a source_uri by"
        f" its files. {hindrance} Leave plan_partitions out. Nothing was sent."
    )


def _bounds(source: ReadsRanges, wanted: Source, column: str, kind: ColumnKind) -> tuple[Value, Value] | None:
    """Return the two bounds, or None if the table is empty or a bound is one that Python cannot hold, such as infinity."""
    try:
        given = [bound[0].as_py() for bound in source.bounds(wanted, column).columns]
        low, high = (None if bound is None else _BOUNDS[kind](bound) for bound in given)
    except (ArithmeticError, ValueError, SourceError):  # the reader of the row says which one it is
        return None
    return None if low is None or high is None else (low, high)


def rules_of(stage: Stage, parts: Parts, resolved: Resolved, target: Target, max_prompt_bytes: int) -> str:
    """Return a hash of everything that decides on a partition's rows.

    A plan takes no rows that were read by other rules. The hash covers the tables, too, because the opening prepared them,
    and looked at other runs on them.
    """
    rules = {
        "format": _FORMAT,
        "routes": [[route.name, route.spec_hash] for route in resolved.routes],
        "current": [sorted(specs) for specs in resolved.current.specs],
        "source": _origin(stage, parts),
        "place": str(parts.target.place(stage.target)),
        "target": {name: str(getattr(target, name)) for name in Target.__slots__ if name != "labels"},
        "key": list(stage.key),
        "attachments": list(stage.attachments),
        "upload_attachments": stage.request.upload_attachments,
        "route_column": stage.route_column,
        "route": None if stage.route is None else _code(stage.route),
        "only": stage.only,
        "retry_dead": stage.guards.retry_dead,
        "max_rows": stage.max_rows,
        "max_prompt_bytes": max_prompt_bytes,
    }
    return hashlib.sha256(canonical(plain(rules))).hexdigest()


def _origin(stage: Stage, parts: Parts) -> str:
    """Return a text that identifies the source. Empty if the source cannot be divided."""
    if isinstance(parts.source, ReadsFiles):
        return parts.source.origin()
    table = stage.source.table
    return (
        str(parts.source.place(table)) if table is not None and isinstance(parts.source, ReadsRanges) else ""
    )


def _code(function: RouteFunction) -> str:
    """Return the source code of a function. Empty if it cannot be read."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPartition:
    """The record of a partition that was read."""

    attempt: str
    """Names the files of the task that read it."""
    rows_sha256: str
    prompts_sha256: str


def put_partition(folder: RunFolder, opening: Opening, number: int, scratch: Path) -> None:
    """Put the files of a spool into the run folder, and make them the partition's unless another task was faster."""
    attempt = secrets.token_hex(5)
    hashes = []
    for name in (ROWS_FILE, PROMPTS_FILE):
        folder.put_partition(opening.nonce, number, f"{attempt}.{name}", scratch / name)
        hashes.append(_sha256(scratch / name))
    done = ReadPartition(attempt=attempt, rows_sha256=hashes[0], prompts_sha256=hashes[1])
    if not folder.create_partition(opening.nonce, number, orjson.dumps(asdict(done))):
        for name in (ROWS_FILE, PROMPTS_FILE):
            folder.delete_partition(opening.nonce, number, f"{attempt}.{name}")


def fetch_partitions(folder: RunFolder, opening: Opening, rules: str, scratch: Path) -> list[Path]:
    """Fetch the files that other tasks have read.

    Returns their folders. Raises `Outrun` if a file is gone, or was read by other rules.
    """
    opening.check(rules)
    folders = []
    for number in range(len(opening.partitions)):
        data = folder.read_partition(opening.nonce, number)
        read = None if data is None else ReadPartition(**orjson.loads(data))
        local = scratch / f"partition-{number}"
        if read is None or not _fetch(folder, opening, number, read, local):
            raise Outrun(
                "Some of what other tasks have read is gone. This worker alone reads the source again."
            )
        folders.append(local)
    return folders


def _fetch(folder: RunFolder, opening: Opening, number: int, read: ReadPartition, local: Path) -> bool:
    local.mkdir()
    for name, sha256 in ((ROWS_FILE, read.rows_sha256), (PROMPTS_FILE, read.prompts_sha256)):
        if not folder.get_partition(opening.nonce, number, f"{read.attempt}.{name}", local / name):
            return False
        if _sha256(local / name) != sha256:
            raise StoreError(
                f"{name} of the partition {number + 1} in the run folder is not the file that was read. Clear the group's"
                " first task and those after it. Nothing was sent."
            )
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
