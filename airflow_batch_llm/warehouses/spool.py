"""Rows put aside on the local disk, so that where they came from can be let go.

Written batch by batch and read back batch by batch: memory holds one batch, whatever the number of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True, slots=True, kw_only=True)
class Spool:
    """Rows in an Arrow file; they can be read any number of times, also by another process."""

    path: Path
    schema: pa.Schema
    rows: int

    def read(self) -> pa.RecordBatchReader:
        """The rows from the beginning."""
        return pa.RecordBatchReader.from_batches(self.schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        with pa.OSFile(str(self.path)) as file, pa.ipc.open_stream(file) as stream:
            yield from stream

    def remove(self) -> None:
        """Delete the file. What is gone already is no error."""
        self.path.unlink(missing_ok=True)


def spool(rows: pa.RecordBatchReader, path: Path) -> Spool:
    """Write all rows to an Arrow file, compressed."""
    count = 0
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema, options=options) as stream:
        for batch in rows:
            stream.write_batch(batch)
            count += batch.num_rows
    return Spool(path=path, schema=rows.schema, rows=count)


def write_parquet(rows: pa.RecordBatchReader, path: Path) -> int:
    """Write all rows to a Parquet file, for a database that loads such files; gives their number."""
    count = 0
    with pq.ParquetWriter(path, rows.schema) as file:
        for batch in rows:
            file.write_batch(batch)
            count += batch.num_rows
    return count
