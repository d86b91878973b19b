"""Divide the values of a key column into ranges, so that several workers read one table."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

Value = int | Decimal | date | datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRange:
    """The rows of a table whose key is at least `low` and below `high`. The first range has no `low` and holds NULL, too."""

    column: str
    low: str | None = None
    """The first value, as a literal of SQL: `5` or `'2026-02-28'`. Default: there is no lower bound."""
    high: str | None = None
    """The first value beyond the range. Default: there is no upper bound."""


def key_ranges(column: str, bounds: tuple[Value, Value] | None, most: int) -> list[KeyRange]:
    """Return at most `most` ranges of equal width. Together they hold every row, also one that comes later.

    `bounds` are the least and the greatest value. None: the table is empty.
    """
    edges = [] if bounds is None else sorted({one for one in _edges(*bounds, most) if one > bounds[0]})
    texts = [None, *map(_spelled, edges), None]
    return [KeyRange(column=column, low=low, high=high) for low, high in pairwise(texts)]


def _edges(low: Any, high: Any, most: int) -> list[Any]:
    """Return the values at which the ranges begin, but for the first."""
    if isinstance(low, date) and not isinstance(low, datetime):
        days = _edges(low.toordinal(), high.toordinal(), most)
        return [date.fromordinal(day) for day in days]
    if isinstance(low, int):
        return [low + (high - low + 1) * number // most for number in range(1, most)]
    if isinstance(low, datetime):  # a DATETIME of SQL Server compares with no more than milliseconds
        return [(low + (high - low) * number / most).replace(microsecond=0) for number in range(1, most)]
    return [low + (high - low) * number / most for number in range(1, most)]


def _spelled(value: Value) -> str:
    """Return the value as every database takes it. Its session is in UTC."""
    if isinstance(value, datetime):
        moment = value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
        return f"'{moment.isoformat(sep=' ')}'"
    if isinstance(value, date):
        return f"'{value.isoformat()}'"
    return format(value, "f") if isinstance(value, Decimal) else str(value)
