"""The text of values in a prompt and under a hash."""

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.core.value import plain, scrub, text

CEST = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        ("", ""),
        ("NULL", "NULL"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-7, "-7"),
        (2**70, "1180591620717411303424"),
        (1.0, "1.0"),
        (0.1 + 0.2, "0.30000000000000004"),
        (float("nan"), "NaN"),
        (float("-inf"), "-Infinity"),
        (Decimal("1.50"), "1.50"),
        (Decimal("1E+5"), "100000"),
        (Decimal("NaN"), "NaN"),
        (date(2026, 2, 3), "2026-02-03"),
        (time(4, 5, 6), "04:05:06"),
        (datetime(2026, 2, 3, 4, 5, 6), "2026-02-03T04:05:06"),  # noqa: DTZ001 - a warehouse's plain TIMESTAMP
        (datetime(2026, 2, 3, 4, 5, 6, 700, tzinfo=UTC), "2026-02-03T04:05:06.000700Z"),
        (datetime(2026, 2, 3, 1, 0, tzinfo=CEST), "2026-02-02T23:00:00Z"),
        (timedelta(days=1, seconds=1, microseconds=500_000), "PT86401.5S"),
        (timedelta(seconds=-600), "-PT600S"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ([], "[]"),
        ([1, None, "a b", 1.5], '[1,null,"a b",1.5]'),
        ({"z": 1, "a": [True]}, '{"z":1,"a":[true]}'),
        ({"price": Decimal("1.10"), "day": date(2026, 1, 1)}, '{"price":1.10,"day":"2026-01-01"}'),
        ([2**70, float("inf")], '[1180591620717411303424,"Infinity"]'),
        ("a\ud800b", "a\ufffdb"),
        (["\udfff"], '["\ufffd"]'),
    ],
)
def test_a_value_reads_in_a_prompt_as_documented(value: object, expected: str) -> None:
    assert text(value) == expected


@pytest.mark.parametrize("value", [b"raw", bytearray(b"raw"), memoryview(b"raw"), object(), [b"raw"]])
def test_bytes_and_unknown_types_have_no_text_form(value: object) -> None:
    with pytest.raises(TypeError, match="no text form"):
        text(value)


def spelled(value: object) -> str:
    return orjson.dumps(plain(value), option=orjson.OPT_SORT_KEYS).decode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"),
        (True, "true"),
        (1, "1"),
        (1.0, "1"),
        (Decimal("1.00"), "1"),
        ("1", '"1"'),
        (0.1, "0.1"),
        (Decimal("0.10"), "0.1"),
        (1.5e-7, "0.00000015"),
        (-0.0, "0"),
        (1e22, "10000000000000000000000"),
        (Decimal("12345678901234567890123456789012345.67"), "12345678901234567890123456789012345.67"),
        (float("nan"), '"NaN"'),
        (datetime(2026, 2, 3, 1, 0, tzinfo=CEST), '"2026-02-02T23:00:00Z"'),
        ({"b": 1.0, "a": [Decimal(2)]}, '{"a":[2],"b":1}'),
        (b"\x00\xff", '"00ff"'),
        ("a\ud800", '"a\ufffd"'),
    ],
)
def test_a_value_is_spelled_under_a_hash_as_documented(value: object, expected: str) -> None:
    assert spelled(value) == expected


@given(st.integers(), st.integers(0, 20))
def test_a_number_is_spelled_alike_whatever_its_scale(number: int, zeros: int) -> None:
    assert spelled(Decimal(number)) == spelled(number) == spelled(Decimal(f"{number}.{'0' * zeros}"))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_spelled_out_reads_back_as_itself(number: float) -> None:
    assert float(spelled(number)) == number


@given(st.text(st.characters(codec=None), max_size=40))
def test_scrubbed_text_can_be_encoded_and_keeps_all_that_could(value: str) -> None:
    scrubbed = scrub(value)
    assert scrubbed.encode().decode() == scrubbed
    assert len(scrubbed) == len(value)
    assert all(a == b or "\ud800" <= a <= "\udfff" for a, b in zip(value, scrubbed, strict=True))
