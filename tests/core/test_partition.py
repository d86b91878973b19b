"""Ranges of a key leave no value out, in literals that every database can compare with its own."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

from airflow_batch_llm.core.value import key_ranges


def test_ranges_of_instants_begin_at_whole_seconds() -> None:
    """A DATETIME of SQL Server refuses to be compared with microseconds."""
    first = datetime(2026, 2, 28, 10, 0, 0, 500_000, tzinfo=timezone(timedelta(hours=2)))

    ranges = key_ranges("at", (first, first + timedelta(seconds=4)), 3)
    short = key_ranges("at", (first.astimezone(UTC), first + timedelta(milliseconds=400)), 3)

    edges = [None, "'2026-02-28 08:00:01'", "'2026-02-28 08:00:03'", None]
    assert [one.low for one in ranges] == edges[:-1]
    assert [one.high for one in ranges] == edges[1:]
    assert [(one.low, one.high) for one in short] == [(None, None)]


def test_ranges_of_decimals_begin_at_numbers_that_the_column_can_hold() -> None:
    """DuckDB compares a DECIMAL(38,10) with no literal of more places."""
    low, high = (
        Decimal("-9999999999999999999999999999.0000000001"),
        Decimal("9999999999999999999999999999.0000000000"),
    )

    wide = key_ranges("at", (low, high), 3)
    whole = key_ranges("at", (Decimal(0), Decimal(2)), 9)

    assert [one.low for one in wide] == [
        None, "-3333333333333333333333333333.0000000001", "3333333333333333333333333333.0000000000"
    ]  # fmt: skip
    assert [one.low for one in whole] == [None, "1", "2"]
