"""CSV files, a block at a time.

The types are told from the first megabytes of each file; a later value that does not fit is an error that names the
column and what to do, never a guess that changes halfway. Arrow reads up to 32 blocks ahead, so the blocks are small,
and grow only for a file with a row that is longer.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.csv

from airflow_batch_llm.errors import SourceError

#: Sizes of a block, and so of the longest row, tried in turn.
_BLOCKS = (1 << 20, 8 << 20, 64 << 20)

_AT_COLUMN = re.compile(r"In CSV column #(\d+): (?!.*UTF8)")
_RAGGED = re.compile(r"Expected (\d+) columns, got (\d+)")
_TOO_LONG = "straddling"


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvFile:
    """Reads one CSV file with a header line."""

    column_types: Mapping[str, pa.DataType] = field(default_factory=dict)
    delimiter: str = ","

    def schema(self, stream: Any) -> pa.Schema:
        """The header's columns, in the types of the first rows; none where the file is empty."""
        complaint = ""
        for block in _BLOCKS[1:]:
            stream.seek(0)
            head = stream.read(2 * block)  # a row may reach into the second block
            if not head:
                return pa.schema([])
            try:
                with self._open(BytesIO(head), self.column_types, block) as rows:
                    return self._readable(rows.schema)
            except pa.ArrowException as error:
                complaint = str(error)
            if _TOO_LONG not in complaint:
                break
        raise SourceError(_said(complaint, []))

    def batches(self, stream: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows in the columns of `schema`; what the file does not have is NULL."""
        if not stream.read(1):
            return
        complaint, given = "", 0
        for block in _BLOCKS:
            skip = given
            try:
                for batch in self._blocks(stream, schema, block):
                    fresh = batch.slice(min(skip, batch.num_rows))
                    skip -= batch.num_rows - fresh.num_rows
                    given += fresh.num_rows
                    yield fresh
                return
            except pa.ArrowException as error:
                complaint = str(error)
            if _TOO_LONG not in complaint:
                break
        raise SourceError(_said(complaint, self._header(stream)))

    def _blocks(self, stream: Any, schema: pa.Schema, block: int) -> Iterator[pa.RecordBatch]:
        stream.seek(0)
        types = {column.name: column.type for column in schema}
        turn = _Turn(stream)
        try:
            with self._open(turn, types, block, include=schema.names) as rows:
                for batch in rows:
                    yield batch.cast(schema)
        finally:
            turn.end()

    def _readable(self, schema: pa.Schema) -> pa.Schema:
        """The schema, unless Arrow found in a text what is no UTF-8, and took it for bytes."""
        for column in schema:
            if pa.types.is_binary(column.type) and column.name not in self.column_types:
                raise SourceError(f"column {column.name!r} is not written in UTF-8.")
        return schema

    def _header(self, stream: Any) -> list[str]:
        names: list[str] = self.schema(stream).names
        return names

    def _open(
        self,
        stream: Any,
        types: Mapping[str, pa.DataType],
        block: int,
        *,
        include: list[str] | None = None,
    ) -> Any:
        return pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=block, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict(types),
                include_columns=include,
                include_missing_columns=include is not None,
            ),
        )


class _Turn:
    """The stream, for one reader of Arrow's only.

    Arrow reads ahead in threads, which go on for a while when the reader has failed. Without this they would take bytes
    from the next reader of the same stream, and rows would be lost.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lock = Lock()
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        """Read on, if it is still this reader's turn."""
        with self._lock:
            data: bytes = b"" if self.closed else self._stream.read(size)
            return data

    def end(self) -> None:
        """Wait for a read that goes on, and let none begin after it."""
        with self._lock:
            self.closed = True


def _said(complaint: str, header: list[str]) -> str:
    """What is wrong with a file, without the value that is wrong."""
    column = _AT_COLUMN.search(complaint)
    if column and int(column[1]) < len(header):
        name = header[int(column[1])]
        return (
            f"column {name!r} has a later value that does not fit the type of its first rows. "
            f"Set its type: column_types={{{name!r}: …}}, a string for instance."
        )
    if column:
        return "a value is not of the type that column_types= asks for."
    if ragged := _RAGGED.search(complaint):
        return f"a row has {ragged[2]} columns, and the header {ragged[1]}."
    if "UTF8" in complaint:
        return "it is not written in UTF-8."
    if _TOO_LONG in complaint:
        return f"a row is longer than {_BLOCKS[-1] >> 20} MB, or a quotation mark is never closed."
    return "it is no CSV with a header line."
