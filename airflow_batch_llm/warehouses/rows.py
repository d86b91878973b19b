"""Rows as a database cursor gives them, made into record batches of bounded size."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pyarrow as pa

from airflow_batch_llm.errors import SourceError
from airflow_batch_llm.warehouses.plain import typed

_BATCH_BYTES = 16 * 1024 * 1024
_MOST_ROWS = 20_000
_FIRST_ROWS = 500

Fetch = Callable[[int], Sequence[Sequence[Any]]]
Make = Callable[[Sequence[Sequence[Any]], pa.Schema], pa.RecordBatch]


def batches(fetch: Fetch, schema: pa.Schema, make: "Make | None" = None) -> Iterator[pa.RecordBatch]:
    """All rows that `fetch(n)` gives, until it gives none. The size of rows seen so far sets how many come next."""
    make = make or record_batch
    count = _FIRST_ROWS
    while rows := fetch(count):
        batch = make(rows, schema)
        yield batch
        count = max(1, min(_MOST_ROWS, _BATCH_BYTES * len(rows) // max(batch.nbytes, 1)))


def record_batch(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows as a record batch. A value that is not of its column's type is an error that names the column."""
    # One pass a column: zip(*rows) would make an iterator for every row.
    arrays = [array([row[place] for row in rows], field) for place, field in enumerate(schema)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """A column of values as a driver gives them, in its type."""
    with suppress(pa.ArrowException, OverflowError, TypeError, ValueError):
        if isinstance(field.type, pa.UuidType | pa.JsonType):
            return typed(pa.array(values, pa.string()), field.type)
        return pa.array(values, field.type)
    if pa.types.is_boolean(field.type) and all(value in (None, 0, 1) for value in values):
        return pa.array([None if value is None else bool(value) for value in values], field.type)
    if pa.types.is_string(field.type):
        return pa.array([None if value is None else _text(value) for value in values], pa.string())
    raise SourceError(
        f"The column {field.name} was read as {field.type}, and some of its rows hold something else. "
        "CAST it to one type in the source's query."
    )


def _text(value: Any) -> str:
    # As databases write a number: never with an exponent.
    return format(value, "f") if isinstance(value, Decimal) else str(value)
