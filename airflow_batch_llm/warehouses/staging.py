"""Staged parts as Parquet files, for databases that let one writer in at a time.

A file gets its name when it is whole and on the disk; until then it is a temporary file that no process reads. So a
part is staged entirely or not at all, and staging it again replaces it.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.errors import WarehouseError
from airflow_batch_llm.warehouses.arrow import plain_batch, plain_schema
from airflow_batch_llm.warehouses.base import Part, Target
from airflow_batch_llm.warehouses.dialect import Dialect

#: A table in which the answers or the failures of one part are staged: run, round, shard, kind.
_STAGED_TABLE = re.compile(r"_llm_[0-9a-f]{16}_[0-9]+_[0-9]+_[af]")
_RUN_TOKEN = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedFiles:
    """The files of some parts."""

    answers: tuple[Path, ...]
    failures: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingBounds:
    """The number of staged rows and bytes that may be held at once."""

    rows: int
    bytes: int  # before compression


def rows_of(file: Path) -> int:
    """Return the number of rows in a staged file."""
    return int(pq.read_metadata(file).num_rows)


def run_token(target: Target, run_id: str) -> str:
    """Return a short name of a run on a target, fit for files and tables."""
    return sha256(repr((target.table, target.failures, run_id)).encode()).hexdigest()[:16]


def is_staged_table(name: str) -> bool:
    """Return whether a table without its schema is one in which a part is staged."""
    return _STAGED_TABLE.fullmatch(name.lower()) is not None


def forgotten(newest: Mapping[str, object], before: datetime) -> list[str]:
    """Choose the staged tables that are older than `before`, by the newest instant in each as the database gives it.

    The two tables of a part are as old as the newer one. Tables whose age is unknown are not chosen.
    """
    ages: dict[str, datetime] = {}
    for name, value in newest.items():
        at = _instant(value)
        if at is not None:
            ages[name[:-2]] = max(at, ages.get(name[:-2], at))
    return [name for name in newest if name[:-2] in ages and ages[name[:-2]] < before]


def _instant(value: object) -> datetime | None:
    """Read an instant of a database; one without a zone is in UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def not_staged(part: Part) -> WarehouseError:
    """Return the error for a part that was to be published and is not there."""
    return WarehouseError(
        f"Shard {part.shard} (round {part.round}) of run {part.run_id} is not staged. It was staged for another "
        "target, or its staging was removed or is on another machine: stage it again, then publish."
    )


class StagingFolder:
    """A folder that all workers of a run share."""

    def __init__(self, path: Path, dialect: Dialect) -> None:
        self._path = path
        self._dialect = dialect

    def put(
        self, target: Target, part: Part, answers: pa.RecordBatchReader, failures: pa.RecordBatchReader
    ) -> None:
        """Write one part. The answers' file comes last: where it is, the failures' file is too."""
        for name, reader in (("failures", failures), ("answers", answers)):
            self._write(self._file(target, part, name), reader, frozenset(target.key.names))

    def files(self, target: Target, parts: Sequence[Part]) -> StagedFiles:
        """Return the files of staged parts. Raises an error that names the first part that is not staged."""
        for part in parts:
            if not self._file(target, part, "answers").exists():
                raise not_staged(part)
        return StagedFiles(
            answers=tuple(self._file(target, part, "answers") for part in parts),
            failures=tuple(self._file(target, part, "failures") for part in parts),
        )

    def portions(self, target: Target, parts: Sequence[Part], most: StagingBounds) -> Iterator[list[Part]]:
        """Yield the parts in their order, cut so that no portion of several parts holds more answers than that."""
        portion: list[Part] = []
        rows = size = 0
        for part in parts:
            metadata = pq.read_metadata(self._file(target, part, "answers"))
            held = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
            if portion and (rows + metadata.num_rows > most.rows or size + held > most.bytes):
                yield portion
                portion, rows, size = [], 0, 0
            portion.append(part)
            rows, size = rows + metadata.num_rows, size + held
        if portion:
            yield portion

    def remove(self, target: Target, parts: Sequence[Part]) -> None:
        """Drop the files of parts, and folders that are empty then."""
        folders = set()
        for part in parts:
            for name in ("answers", "failures"):
                file = self._file(target, part, name)
                for left in (file, *file.parent.glob(f".{file.name}.*")):  # a killed writer leaves its half
                    left.unlink(missing_ok=True)
            folders.add(self._file(target, part, "answers").parent)
        for folder in [*folders, self._path]:
            with suppress(OSError):  # gone already, or not empty
                folder.rmdir()

    def sweep(self, before: datetime) -> int:
        """Drop the files that were last changed before this time, and folders that are empty then. Returns their number."""
        found = list(self._path.iterdir()) if self._path.is_dir() else []
        runs = [folder for folder in found if _RUN_TOKEN.fullmatch(folder.name) and folder.is_dir()]
        dropped = 0
        for folder in runs:
            for file in folder.iterdir():
                with suppress(FileNotFoundError):  # another worker is at it
                    if file.stat().st_mtime < before.timestamp():
                        file.unlink()
                        dropped += 1
        for folder in [*runs, self._path]:
            with suppress(OSError):  # gone already, or not empty
                folder.rmdir()
        return dropped

    def probe(self) -> None:
        """Make sure that files can be written here, and leave none."""
        trial = self._path / f".probe-{uuid4().hex}"
        _create(trial).close()
        trial.unlink()
        with suppress(OSError):
            self._path.rmdir()

    def _file(self, target: Target, part: Part, name: str) -> Path:
        return self._path / run_token(target, part.run_id) / f"{part.round:04}-{part.shard:06}.{name}.parquet"

    def _write(self, file: Path, reader: pa.RecordBatchReader, key: frozenset[str]) -> None:
        partial = file.with_name(f".{file.name}.{uuid4().hex}")
        schema = plain_schema(reader.schema, self._dialect)
        try:
            with _create(partial) as sink:
                with pq.ParquetWriter(sink, schema, compression="lz4") as writer:
                    for batch in reader:
                        writer.write_batch(plain_batch(batch, key, self._dialect))
                sink.flush()
                os.fsync(sink.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def _create(file: Path) -> BinaryIO:
    while True:
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return open(file, "xb", opener=_private)
        except FileNotFoundError:
            continue  # another worker removed the folder, empty at that moment


def _private(path: str, flags: int) -> int:
    """Open a file that only this user can read, with any umask, because it holds answers."""
    return os.open(path, flags, 0o600)
