"""CSV files, a block at a time.

The types are told from the first block of each file; a later value that does not fit is an error that names the
column and what to do, never a guess that changes halfway.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.csv

from airflow_batch_llm.errors import SourceError

#: No row may be longer; the types are told from so many bytes.
_BLOCK = 8 << 20

_AT_COLUMN = re.compile(r"In CSV column #(\d+): (?!.*UTF8)")
_RAGGED = re.compile(r"Expected (\d+) columns, got (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvFile:
    """Reads one CSV file with a header line."""

    column_types: Mapping[str, pa.DataType] = field(default_factory=dict)
    delimiter: str = ","

    def schema(self, stream: Any) -> pa.Schema:
        """The header's columns, in the types of the first block; none where the file is empty."""
        if not stream.read(1):
            return pa.schema([])
        stream.seek(0)
        with self._told(stream), self._open(stream, self.column_types) as rows:
            schema = rows.schema
        for column in schema:
            if pa.types.is_binary(column.type) and column.name not in self.column_types:
                raise SourceError(f"column {column.name!r} is not written in UTF-8.")
        return schema

    def batches(self, stream: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows in the columns of `schema`; what the file does not have is NULL."""
        if not stream.read(1):
            return
        stream.seek(0)
        types = {column.name: column.type for column in schema}
        with self._told(stream), self._open(stream, types, include=schema.names) as rows:
            for batch in rows:
                yield batch.cast(schema)

    def _open(
        self, stream: Any, types: Mapping[str, pa.DataType], *, include: list[str] | None = None
    ) -> Any:
        return pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict(types),
                include_columns=include,
                include_missing_columns=include is not None,
            ),
        )

    @contextmanager
    def _told(self, stream: Any) -> Iterator[None]:
        """Say what is wrong with a file without the value that is wrong."""
        try:
            yield
            return
        except pa.ArrowException as error:
            text = str(error)
        raise SourceError(self._complaint(stream, text))

    def _complaint(self, stream: Any, text: str) -> str:
        if column := _AT_COLUMN.search(text):
            stream.seek(0)
            name = self._open(stream, {}).schema.names[int(column[1])]
            return (
                f"column {name!r} has a later value that does not fit the type of its first rows. "
                f"Set its type: column_types={{{name!r}: …}}, a string for instance."
            )
        if ragged := _RAGGED.search(text):
            return f"a row has {ragged[2]} columns, and the header {ragged[1]}."
        if "UTF8" in text:
            return "it is not written in UTF-8."
        if "straddling" in text:
            return f"a row is longer than {_BLOCK >> 20} MB, or a quotation mark is never closed."
        return "it is no CSV with a header line."
