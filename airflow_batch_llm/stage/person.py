"""Find one person's rows by key, in keys files, in reports and in the target, and write a shard's files without them.

The files then differ from their planned hashes. The new hashes are recorded before the files are replaced, so that
a reader accepts the old file and the new one, and no other. The keys file is replaced last: while it has the rows, a
repeated erasure finds them again.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_batch_llm.core.attachment import references
from airflow_batch_llm.core.packing import Layout, pack, unpack
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.core.request import LineTemplate, custom_id
from airflow_batch_llm.core.value import text
from airflow_batch_llm.errors import InputError, StoreError
from airflow_batch_llm.providers.incoming import joined_lines, split_lines
from airflow_batch_llm.stage.land.landing import SAMPLE_CHARS, sample_keys
from airflow_batch_llm.stage.plan.carried import restored
from airflow_batch_llm.stage.plan.shard_files import read_layout
from airflow_batch_llm.stage.plan.spool import REQUEST, SHARED
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.warehouses.arrow import parquet_batches

ERASED = "[erased]"
_PLAIN_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """The key of the rows that are erased."""

    values: tuple[str, ...]
    """The key's values as texts, one for each column."""
    columns: tuple[str, ...] = ()
    """The columns of the values. Default: the key columns of each run, in their order."""
    target: str | None = None
    """The table whose runs are looked at. Default: the runs of all tables."""

    def __post_init__(self) -> None:
        if not self.values or (self.columns and len(self.columns) != len(self.values)):
            raise InputError(
                f"{counted(len(self.values), 'value')} and {counted(len(self.columns), 'column')} do not match."
                " Give --key once for each key column, and --key-column as often or never."
            )

    def columns_in(self, key: pa.Schema, others: pa.Schema) -> tuple[str, ...] | None:
        """Return the columns that hold the values in a run with this key and these other columns.

        Returns None if the run does not have them.
        """
        if not self.columns:
            return tuple(key.names) if len(key.names) == len(self.values) else None
        known = {*key.names, *others.names}
        return self.columns if known.issuperset(self.columns) else None

    def rows(self, batch: pa.RecordBatch, columns: Sequence[str]) -> list[bool]:
        """Return for each row whether it is the person's."""
        found = [True] * batch.num_rows
        for name, wanted in zip(columns, self.values, strict=True):
            values = batch.column(name).to_pylist()
            found = [before and _is_same(value, wanted) for before, value in zip(found, values, strict=True)]
        return found

    def is_sample(self, sample: str, key: Sequence[str], columns: Sequence[str]) -> bool:
        """Return whether a key that a report shows is, or may be, the person's."""
        cut = [value[:SAMPLE_CHARS] for value in self.values]
        if list(columns) == list(key):
            return sample == "/".join(cut)
        return all(value in sample.split("/") or ("/" in value and value in sample) for value in cut)

    def statements(self, tables: Iterable[str], columns: Sequence[str], key: pa.Schema) -> list[str]:
        """Return the SQL that deletes the person's rows from these tables."""
        conditions = " AND ".join(
            f"{name} = {_literal(value, key.field(name).type if name in key.names else pa.string())}"
            for name, value in zip(columns, self.values, strict=True)
        )
        return [f"DELETE FROM {table} WHERE {conditions};" for table in tables]


def _is_same(value: object, wanted: str) -> bool:
    """Return whether a key's value has this text, in any of the spellings in which people meet it."""
    match value:
        case None:
            return False
        case bytes():
            return value.hex() == wanted.lower()
        case bool():
            return text(value) == wanted.lower()
        case int() | float() | Decimal():
            return str(value) == wanted or _is_same_number(value, wanted)
        case datetime():
            return wanted in (str(value), value.isoformat(), text(value))
        case _:
            return str(value) == wanted


def _is_same_number(value: float | Decimal, wanted: str) -> bool:
    try:
        return Decimal(str(value)) == Decimal(wanted)
    except InvalidOperation:
        return False


def _literal(value: str, type_: pa.DataType) -> str:
    is_number = pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)
    if is_number and _PLAIN_NUMBER.fullmatch(value):
        return value
    return "'" + value.replace("'", "''") + "'"


@dataclass(slots=True, kw_only=True)
class Found:
    """The person's rows in one shard."""

    number: int
    """The shard's number. 0: the rows of the round that could not be sent."""
    rows: int = 0
    requests: dict[int, int] = field(default_factory=dict)
    """The person's rows by request, or by item of packed requests, if no other row uses it. Default: none."""
    layout: Layout = Layout.alone(0)  # noqa: RUF009 - it is frozen
    """The items of the shard's requests. Default: there are none."""
    samples: set[str] = field(default_factory=set)
    """The keys of the rows, as reports show them. Default: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFiles:
    """The files of one shard of a plan. Number 0 has keys only."""

    folder: RunFolder
    plan: Plan
    number: int
    scratch: Path

    def find(self, person: Person, columns: tuple[str, ...]) -> Found | None:
        """Look for the person's rows. Returns None if the files are gone."""
        path = self._path("keys.parquet")
        if not self.folder.get_keys(self.plan.nonce, self.number, path):
            return None
        found = Found(number=self.number, layout=self._layout(path))
        others: set[int] = set()
        for batch in self._batches(path):
            mask = person.rows(self._readable(batch), columns)
            theirs = batch.filter(pa.array(mask, pa.bool_()))
            found.rows += theirs.num_rows
            found.samples |= set(sample_keys(restored(theirs, self.plan.target.key)))
            if self.number:
                for request in theirs.column(REQUEST).to_pylist():
                    found.requests[request] = found.requests.get(request, 0) + 1
                requests = batch.column(REQUEST).to_pylist()
                others.update(
                    request for request, is_theirs in zip(requests, mask, strict=True) if not is_theirs
                )
        path.unlink()
        found.requests = {request: rows for request, rows in found.requests.items() if request not in others}
        return found

    def rewrite_requests(self, found: Found, template: LineTemplate | None) -> None:
        """Replace the prompts that only the person's rows use."""
        path = self._path("requests.jsonl")
        if not found.requests or not self.folder.get_requests(self.plan.nonce, self.number, path):
            return
        token, layout = self.plan.shard_token(self.number), found.layout
        asked = {layout.request_of(item) for item in found.requests}
        made = self._path("requests.new")
        with path.open("rb") as old, made.open("wb") as new:
            lines = enumerate(split_lines(old))
            new.writelines(
                joined_lines(
                    _tombstone(template, line, custom_id(token, ordinal), _theirs(found, ordinal))
                    if ordinal in asked
                    else line
                    for ordinal, line in lines
                )
            )
        path.unlink()
        self._publish(made, self.folder.put_requests)

    def attachments(self) -> set[str]:
        """Return the hashes of the attachments that the requests name."""
        path = self._path("requests.jsonl")
        if not self.number or not self.folder.get_requests(self.plan.nonce, self.number, path):
            return set()
        with path.open("rb") as file:
            found = {str(one.sha256) for line in split_lines(file) for one in references(line)}
        path.unlink()
        return found

    def rewrite_keys(self, person: Person, columns: tuple[str, ...]) -> None:
        """Write the keys file without the person's rows."""
        path, made = self._path("keys.parquet"), self._path("keys.new")
        if not self.folder.get_keys(self.plan.nonce, self.number, path):
            raise StoreError(f"A keys file of {self.folder.path} went away meanwhile. Repeat the command.")
        schema = pq.read_schema(path)
        orphaned: set[int] = set()
        with pq.ParquetWriter(made, schema, compression="lz4", use_dictionary=False) as writer:
            for batch in self._batches(path):
                mask = pa.array(person.rows(self._readable(batch), columns), pa.bool_())
                kept = batch.filter(pc.invert(mask))
                if self.number:
                    kept = _paid_by_the_next(batch.filter(mask), kept, orphaned)
                writer.write_batch(kept)
        path.unlink()
        self._publish(made, self.folder.put_keys)

    def _publish(self, made: Path, put: Callable[[str, int, Path], None]) -> None:
        with made.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.folder.add_erased_hash(self.plan.nonce, self.number, sha256)
        put(self.plan.nonce, self.number, made)
        made.unlink()

    def _readable(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        target = self.plan.target
        names = [field.name for field in (*target.key, *target.carried)]
        known = [name for name in names if name in batch.schema.names]
        return restored(batch, pa.schema([target.answer_columns.field(name) for name in known]))

    def _layout(self, keys: Path) -> Layout:
        shard = next((one for one in self.plan.shards if one.number == self.number), None)
        return Layout.alone(0) if shard is None else read_layout(keys, shard)

    def _path(self, kind: str) -> Path:
        return self.scratch / f"{self.plan.nonce}-{self.number:04d}.{kind}"

    @staticmethod
    def _batches(path: Path) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as file:
            yield from parquet_batches(file)


def _theirs(found: Found, ordinal: int) -> set[int] | None:
    """Return the places of the person's items in a packed request. Returns None if it is not packed."""
    items = found.layout.items_of(ordinal)
    return {item - items[0] for item in items if item in found.requests} if found.layout.is_packed else None


def _tombstone(template: LineTemplate | None, line: bytes, identity: str, items: set[int] | None) -> bytes:
    """Return a line for the same request without its prompt, or without these items of it.

    With a template the line can still be sent. Without one it is never sent again, so all of its text is deleted.
    """
    if template is None:
        return orjson.dumps({"custom_id": identity, "prompt": ERASED})
    if template.line(identity, template.prompt(line, identity)) != line:
        raise InputError(
            f"Request {identity} was written by another release, so its prompt cannot be replaced in a run that is"
            " not finished. Finish the run, then repeat the command."
        )
    gone = orjson.dumps(ERASED)
    if items is None:
        return template.line(identity, gone)
    prompts = unpack(template.prompt(line, identity))
    return template.line(identity, pack([gone if n in items else one for n, one in enumerate(prompts)]))


def _paid_by_the_next(gone: pa.RecordBatch, kept: pa.RecordBatch, orphaned: set[int]) -> pa.RecordBatch:
    """Move a request's cost to its next row if the row that held it is deleted."""
    orphaned |= set(gone.filter(pc.invert(gone.column(SHARED))).column(REQUEST).to_pylist())
    requests, shared = kept.column(REQUEST).to_pylist(), kept.column(SHARED).to_pylist()
    for place, request in enumerate(requests):
        if request in orphaned:
            shared[place] = False
            orphaned.discard(request)
    at = kept.schema.get_field_index(SHARED)
    return kept.set_column(at, kept.schema.field(at), pa.array(shared, pa.bool_()))
