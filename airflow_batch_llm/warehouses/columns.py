"""Arrow arrays and scalars from Python's values, for the few types that every shard has.

`pyarrow.array` and `pyarrow.scalar` (also where a function is given a plain number) ask whether the value is a pandas
object, and import pandas for that where it is installed: 40 MB and a third of a second for nothing.
"""

from array import array
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate

import pyarrow as pa

_EPOCH = datetime.fromtimestamp(0, UTC)


def numbers(values: Iterable[int]) -> pa.Int64Array:
    """Whole numbers, none of them NULL."""
    data = array("q", values)
    return pa.Array.from_buffers(pa.int64(), len(data), [None, pa.py_buffer(data)])


def number(value: int) -> pa.Int64Scalar:
    """A whole number."""
    return numbers([value])[0]


def flags(values: Iterable[bool]) -> pa.BooleanArray:
    """Truth values, none of them NULL."""
    data = bytes(values)
    return pa.Array.from_buffers(pa.uint8(), len(data), [None, pa.py_buffer(data)]).cast(pa.bool_())


def amounts(values: Sequence[float | None]) -> pa.DoubleArray:
    """Numbers with fractions."""
    data = array("d", [0.0 if value is None else value for value in values])
    return pa.Array.from_buffers(pa.float64(), len(data), [_present(values), pa.py_buffer(data)])


def texts(values: Sequence[str | None]) -> pa.StringArray:
    """Texts."""
    present = _present(values)
    given = [value or "" for value in values]
    if all(map(str.isascii, given)):
        return _array("".join(given).encode(), map(len, given), present, pa.string())
    return _joined([value.encode() for value in given], present, pa.string())


def text(value: str) -> pa.StringScalar:
    """A text."""
    return texts([value])[0]


def moment(seconds: float) -> pa.TimestampScalar:
    """A time, from seconds since the epoch."""
    since = datetime.fromtimestamp(seconds, UTC) - _EPOCH
    return numbers([since // timedelta(microseconds=1)]).view(pa.timestamp("us", tz="UTC"))[0]


def octets(values: Sequence[bytes]) -> pa.BinaryArray:
    """Strings of bytes, none of them NULL."""
    return _joined(values, None, pa.binary())


def _joined(values: Sequence[bytes], present: pa.Buffer | None, kind: pa.DataType) -> pa.Array:
    return _array(b"".join(values), map(len, values), present, kind)


def _array(data: bytes, lengths: Iterable[int], present: pa.Buffer | None, kind: pa.DataType) -> pa.Array:
    ends = array("i", accumulate(lengths, initial=0))
    return pa.Array.from_buffers(kind, len(ends) - 1, [present, pa.py_buffer(ends), pa.py_buffer(data)])


def _present(values: Sequence[object]) -> pa.Buffer | None:
    """The bits that say which values are not NULL; None: all of them."""
    if None not in values:
        return None
    return flags(value is not None for value in values).buffers()[1]
