"""A stream that is sorted by one column, taken as far as another stream has come: how two of them are merged."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.warehouses.columns import number


class Ahead:
    """What has been read of a sorted stream and not yet been taken is held: one batch at the most."""

    def __init__(self, batches: Iterable[pa.RecordBatch], column: str, schema: pa.Schema) -> None:
        self._batches = iter(batches)
        self._column = column
        self._schema = schema
        self._rest: pa.RecordBatch | None = None

    def below(self, value: int) -> pa.Table:
        """The rows with less than this in the sorted column that were not taken before."""
        taken = []
        while (batch := self._next()) is not None:
            count = pc.sum(pc.less(batch.column(self._column), number(value)).cast(pa.int64())).as_py()
            taken.append(batch.slice(0, count))
            if count < batch.num_rows:
                self._rest = batch.slice(count)
                break
        return pa.Table.from_batches(taken, self._schema)

    def _next(self) -> pa.RecordBatch | None:
        if self._rest is not None:
            batch, self._rest = self._rest, None
            return batch
        return next((batch for batch in self._batches if batch.num_rows), None)
