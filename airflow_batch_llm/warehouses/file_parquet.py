"""Parquet files, a batch at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.errors import SourceError

_BATCH_ROWS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetFile:
    """Reads one Parquet file. The file knows its types; others that are asked for are cast to."""

    column_types: Mapping[str, pa.DataType] = field(default_factory=dict)

    def schema(self, stream: Any) -> pa.Schema:
        """The file's columns."""
        found = pq.ParquetFile(stream).schema_arrow
        return pa.schema([(column.name, self.column_types.get(column.name, column.type)) for column in found])

    def batches(self, stream: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows in the columns of `schema`; what the file does not have is NULL."""
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=_BATCH_ROWS):
            yield pa.RecordBatch.from_arrays([_column(batch, wanted) for wanted in schema], schema=schema)


def _column(batch: pa.RecordBatch, wanted: pa.Field) -> pa.Array:
    if wanted.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, wanted.type)
    try:
        return batch.column(wanted.name).cast(wanted.type)
    except pa.ArrowException:
        pass
    raise SourceError(f"column {wanted.name!r} holds a value that cannot be read as {wanted.type}.")
