"""Files as a source: Parquet, CSV and JSON Lines by URI, as one stream of record batches.

All files are looked at before the first row is returned, so that all rows have one schema. Files that do not fit
together are refused by name, and no message holds a value. Memory holds a piece of one file at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airflow_batch_llm.errors import SourceError, raise_alone
from airflow_batch_llm.warehouses.files.formats import CsvFile, JsonlFile, ParquetFile
from airflow_batch_llm.warehouses.files.listing import is_pattern, matching

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

#: The column that names the file of each row.
SOURCE_URI = "_llm_source_uri"


class FileFormat(StrEnum):
    """The layout of the rows in a file."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"


_SUFFIXES = {
    "parquet": FileFormat.PARQUET,
    "pq": FileFormat.PARQUET,
    "csv": FileFormat.CSV,
    "tsv": FileFormat.CSV,
    "jsonl": FileFormat.JSONL,
    "ndjson": FileFormat.JSONL,
    "json": FileFormat.JSONL,
}
_COMPRESSIONS = re.compile(r"\.(gz|bz2|xz|zst)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """The files to read: URIs and patterns, in one format."""

    uris: tuple[str, ...]
    """URIs and glob patterns, such as `s3://bucket/day=*/part-*.parquet`."""
    format: FileFormat | None = None
    """`parquet`, `csv` or `jsonl`. Default: the format that the file names show."""
    column_types: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Arrow types by column, instead of the types that the data suggest. Default: none."""
    delimiter: str | None = None
    """The separator of CSV columns, one character. Default: a comma, or a tab in `.tsv` files."""


#: Finds the file system of a URI and the path in it.
FindFileSystem = Callable[[str], "tuple[AbstractFileSystem, str]"]


def read_files(
    source: FileSource, find: FindFileSystem | None = None, columns: Collection[str] = ()
) -> pa.RecordBatchReader:
    """Return the rows of all files, in the order of the URIs, with the column `_llm_source_uri` at the end.

    `columns` are the needed ones, or empty for all.
    """
    files = _found(source, find)
    schema = _one_schema(files)
    if not len(schema):
        raise SourceError(f"{_first(files)}: no columns, so there is nothing to read.")
    schema = pa.schema([column for column in schema if not columns or column.name in columns])
    whole = schema.append(pa.field(SOURCE_URI, pa.string()))
    return pa.RecordBatchReader.from_batches(whole, _rows(files, schema, whole))


def read_some_files(
    source: FileSource, names: Sequence[str], schema: pa.Schema, find: FindFileSystem | None = None
) -> pa.RecordBatchReader:
    """Return the rows of some of the files, by their names, in the schema that `read_files` gives to all of them."""
    files = {file.uri: file for file in _found(source, find)}
    if missing := [name for name in names if name not in files]:
        raise SourceError(f"{missing[0]}: there is no such file any more. Put it back, or leave it out.")
    own = schema.remove(schema.get_field_index(SOURCE_URI))
    return pa.RecordBatchReader.from_batches(schema, _rows([files[name] for name in names], own, schema))


def file_names(source: FileSource, find: FindFileSystem | None = None) -> list[str]:
    """Return the names of all files, in the order in which they are read."""
    return [file.uri for file in _found(source, find)]


def _found(source: FileSource, find: FindFileSystem | None) -> list[_File]:
    files = [file for uri in source.uris for file in _files_of(uri, source, find or _fsspec)]
    if not files:
        raise SourceError("No file is named to read rows from.")
    return files


def _fsspec(uri: str) -> tuple[AbstractFileSystem, str]:
    from fsspec.core import url_to_fs

    found: tuple[AbstractFileSystem, str] = url_to_fs(uri)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """One file that was found, and what reads its format."""

    uri: str
    path: str
    system: AbstractFileSystem
    reader: ParquetFile | CsvFile | JsonlFile

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """The uncompressed bytes; what goes wrong with them names the file."""
        with _naming(self.uri), self.system.open(self.path, "rb", compression="infer") as stream:
            yield stream


@contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Name the file in any error, without the driver's own words, which may quote a value."""
    try:
        yield
        return
    except SourceError as error:
        described = SourceError(f"{uri}: {error}")
    except FileNotFoundError:
        described = SourceError(f"{uri}: there is no such file.")
    except PermissionError:
        described = SourceError(f"{uri}: this connection may not read it.")
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        described = SourceError(
            f"{uri}: cannot be read ({type(error).__name__}). Is it whole, and of its format?"
        )
    raise_alone(described)


def _files_of(uri: str, source: FileSource, find: FindFileSystem) -> Iterator[_File]:
    with _naming(uri):
        system, path = find(uri)
        paths = [path]
        if is_pattern(path):
            paths = sorted(matching(system, path))
        elif system.isdir(path):
            raise SourceError("is a folder. Name its files by a pattern, such as /*.parquet at the end.")
        if not paths:
            raise SourceError("matches no file.")
    for found in paths:
        name = system.unstrip_protocol(found)
        yield _File(uri=name, path=found, system=system, reader=_reader(name, source))


def _reader(name: str, source: FileSource) -> ParquetFile | CsvFile | JsonlFile:
    suffix = _COMPRESSIONS.sub("", name).rpartition(".")[2].lower()
    kind = source.format or _SUFFIXES.get(suffix)
    if kind is None:
        raise SourceError(
            f"{name}: the name does not tell the format. Say format=: {', '.join(map(str, FileFormat))}."
        )
    match kind:
        case FileFormat.PARQUET:
            return ParquetFile(column_types=source.column_types)
        case FileFormat.JSONL:
            return JsonlFile(column_types=source.column_types)
        case FileFormat.CSV:
            default = "\t" if suffix == "tsv" else ","
            return CsvFile(column_types=source.column_types, delimiter=source.delimiter or default)


def _one_schema(files: Sequence[_File]) -> pa.Schema:
    """Return the schema of all files together: every column of any, in a type that holds the values of all."""
    types: dict[str, pa.DataType] = {}
    first_in: dict[str, str] = {}
    for file in files:
        with file.opened() as stream:
            schema = file.reader.schema(stream)
            _refuse_names(schema)
        for column in schema:
            before = types.get(column.name, pa.null())
            together = _together(before, column.type)
            if together is None:
                raise SourceError(
                    f"Column {column.name!r} is {before} in {first_in[column.name]} and {column.type} in "
                    f"{file.uri}. Give it one type with column_types=, or read the files apart."
                )
            if pa.types.is_null(before):
                first_in[column.name] = file.uri
            types[column.name] = together
    return pa.schema(
        [(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in types.items()]
    )


def _refuse_names(schema: pa.Schema) -> None:
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise SourceError(f"has several columns named {', '.join(twice)}.")
    if SOURCE_URI in schema.names:
        raise SourceError(f"has a column {SOURCE_URI}, a name that is kept for the file's own.")


def _together(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    try:
        pair = [pa.schema([("c", left)]), pa.schema([("c", right)])]
        return pa.unify_schemas(pair, promote_options="permissive").field(0).type
    except pa.ArrowTypeError:
        return None


def _rows(files: Sequence[_File], schema: pa.Schema, whole: pa.Schema) -> Iterator[pa.RecordBatch]:
    for file in files:
        with file.opened() as stream:
            for batch in file.reader.batches(stream, schema):
                name = pa.repeat(pa.scalar(file.uri, pa.string()), batch.num_rows)
                yield pa.RecordBatch.from_arrays([*batch.columns, name], schema=whole)


def _first(files: Sequence[_File]) -> str:
    return files[0].uri if len(files) == 1 else f"{files[0].uri} and {len(files) - 1} more"
