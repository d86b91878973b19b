"""Write a warehouse value as text for a prompt, as JSON for a hash, and as a literal that divides a key column into ranges.

All spellings are promises: the text is what the model reads, and the JSON decides whether a row has changed. None of them
depends on the warehouse, the driver or the machine's locale and time zone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, localcontext
from itertools import pairwise
from typing import Any
from uuid import UUID

import orjson

_INT64 = range(-(2**63), 2**63)
_REPLACEMENT = "\ufffd"
#: More digits than a decimal of any database with ranges has. BigQuery's BIGNUMERIC has 77.
_DIGITS = 100


def text(value: object) -> str:
    """Return the value as a prompt shows it.

    NULL is the empty string, booleans are `true` and `false`, numbers are written as Python writes them but
    decimals without exponent, dates and times in ISO 8601 (with a zone: in UTC, ending in `Z`), lists and
    structs as compact JSON. A lone surrogate becomes U+FFFD. Raises `TypeError` for bytes and other things.
    """
    if isinstance(value, str):
        return scrub(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple | Mapping):
        return json_text(value)
    return _scalar_text(value)


def json_text(value: object) -> str:
    """Return the value as compact JSON, in its own order: a string is quoted, NULL is `null`."""
    return orjson.dumps(_shown(value)).decode()


def plain(value: object) -> object:
    """Return the value as canonical JSON holds it, ready for `orjson.dumps(…, option=OPT_SORT_KEYS)`.

    Equal numbers are spelled alike (1, 1.0 and 1.00), and unlike the text "1" and the boolean true. What JSON
    cannot say is the text that a prompt shows; bytes are their hex digits.
    """
    if value is None or isinstance(value, bool | orjson.Fragment):  # a Fragment: spelled already
        return value
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, int):
        return int(value) if value in _INT64 else orjson.Fragment(str(value))
    if isinstance(value, float | Decimal):
        return _plain_number(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {text(key): plain(item) for key, item in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return _scalar_text(value)


def scrub(value: str) -> str:
    """Return the text with U+FFFD in place of each lone surrogate, which a JSON line cannot hold."""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return "".join(_REPLACEMENT if "\ud800" <= char <= "\udfff" else char for char in value)
    return str(value)


def _scalar_text(value: object) -> str:
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else _float_text(float(value))
    if isinstance(value, datetime):
        return _timestamp_text(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__} has no text form")


def _float_text(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(float(value))


def _timestamp_text(value: datetime) -> str:
    if value.tzinfo is None:
        return value.isoformat()
    return value.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def duration_text(value: timedelta) -> str:
    """Return a length of time in the words of ISO 8601, in seconds alone: `PT86400S`."""
    seconds = Decimal(value.days * 86_400 + value.seconds) + Decimal(value.microseconds).scaleb(-6)
    sign = "-" if seconds < 0 else ""
    whole = format(abs(seconds), "f")
    return f"{sign}PT{whole.rstrip('0').rstrip('.') if '.' in whole else whole}S"


def _shown(value: object) -> object:
    """Return a nested value with its order kept and its numbers as `text` writes them."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    if isinstance(value, Mapping):
        return {text(key): _shown(item) for key, item in value.items()}
    if isinstance(value, int):
        return orjson.Fragment(str(value))
    if isinstance(value, float | Decimal) and math.isfinite(value):
        return orjson.Fragment(_scalar_text(value))
    return _scalar_text(value)


def _plain_number(value: float | Decimal) -> object:
    if not math.isfinite(value):
        return _float_text(float(value))
    exact = value if isinstance(value, Decimal) else Decimal(repr(float(value)))
    if exact == exact.to_integral_value():
        return plain(int(exact))
    return orjson.Fragment(format(exact, "f").rstrip("0"))


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

    `bounds` are the least and the greatest value, or None if the table is empty.
    """
    edges = [] if bounds is None else sorted({one for one in _edges(*bounds, most) if one > bounds[0]})
    texts = [None, *map(_spelled, edges), None]
    return [KeyRange(column=column, low=low, high=high) for low, high in pairwise(texts)]


def _edges(low: Any, high: Any, most: int) -> list[Any]:
    """Return the values at which the ranges begin, except the first."""
    if isinstance(low, date) and not isinstance(low, datetime):
        days = _edges(low.toordinal(), high.toordinal(), most)
        return [date.fromordinal(day) for day in days]
    if isinstance(low, int):
        return [low + (high - low + 1) * number // most for number in range(1, most)]
    if isinstance(low, datetime):  # a DATETIME of SQL Server compares with no more than milliseconds
        return [(low + (high - low) * number / most).replace(microsecond=0) for number in range(1, most)]
    with localcontext(
        prec=_DIGITS
    ):  # a literal has no more places than the column: DuckDB could not compare them
        width = high - low
        return [(low + width * number / most).quantize(width) for number in range(1, most)]


def _spelled(value: Value) -> str:
    """Return the value as every database takes it. Its session is in UTC."""
    if isinstance(value, datetime):
        moment = value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
        return f"'{moment.isoformat(sep=' ')}'"
    if isinstance(value, date):
        return f"'{value.isoformat()}'"
    return format(value, "f") if isinstance(value, Decimal) else str(value)
