"""Record batches become what databases take, whatever the source's types were."""

import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.errors import SourceError
from airflow_batch_llm.warehouses import find_dialect
from airflow_batch_llm.warehouses.arrow import answer_array, plain_batch, refuse_padded_keys
from airflow_batch_llm.warehouses.base import ARROW_TYPES

VALUES = {
    ColumnType.STRING: ["", "a\n", "ä\u2028"],
    ColumnType.INTEGER: [0, -(2**63), 2**63 - 1],
    ColumnType.NUMBER: [0.0, -1.5, 5e-324, 1.7e308],
    ColumnType.DECIMAL: [
        Decimal("0E-9"),
        Decimal("-1.5"),
        Decimal("9" * 29 + "." + "9" * 9),
        Decimal("1E+3"),
    ],
    ColumnType.BOOLEAN: [False, True],
    ColumnType.TIMESTAMP: [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)],
    ColumnType.DATE: [date.min, date(1969, 12, 31), date.max],
    ColumnType.JSON: ['{"a":1}', "[]"],
    ColumnType.VECTOR: [[1.0, -0.5], [], [1e-7]],
}


def plain(array: pa.Array, dialect: str = "duckdb", *, key: bool = False) -> list[object]:
    """One column's values, plain."""
    batch = pa.RecordBatch.from_arrays([array], names=["x"])
    return plain_batch(batch, frozenset({"x"} if key else ()), find_dialect(dialect)).column(0).to_pylist()


@pytest.mark.parametrize("kind", ColumnType)
@pytest.mark.parametrize("nulls", [[], [None], [None, None]])
def test_an_answer_s_column_is_the_array_that_arrow_makes(kind: ColumnType, nulls: Sequence[None]) -> None:
    type_ = ARROW_TYPES[kind]
    for values in ([], nulls, [*nulls, *VALUES[kind]], [*VALUES[kind], *nulls, *VALUES[kind]]):
        array = answer_array(values, type_)
        array.validate(full=True)
        assert array.equals(pa.array(values, type_))


def test_nested_values_become_json_text() -> None:
    assert plain(pa.array([{"a": [1, None]}, None])) == ['{"a":[1,null]}', None]
    assert plain(pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))) == ['{"k":1}']


def test_dictionaries_and_views_become_plain_text() -> None:
    assert plain(pa.array(["a", "a", None]).dictionary_encode()) == ["a", "a", None]
    assert plain(pa.array(["a", None], pa.string_view())) == ["a", None]
    assert plain(pa.array(["a", None], pa.large_string())) == ["a", None]


def test_a_uuid_becomes_its_text() -> None:
    one = uuid.UUID(int=7)
    assert plain(pa.array([one.bytes, None], pa.uuid())) == [str(one), None]


def test_a_vector_is_a_list_or_a_text_in_the_database_s_brackets() -> None:
    vectors = pa.array([[0.5, None], None, [], [float("inf"), 1e-7]], pa.list_(pa.float32()))
    assert plain(vectors.slice(0, 3)) == [[0.5, None], None, []]
    assert plain(vectors.slice(0, 3), "postgres") == ["{0.5,null}", None, "{}"]
    assert plain(vectors.slice(2, 1), "sqlite") == ["[]"]


def test_big_unsigned_integers_become_decimals() -> None:
    assert plain(pa.array([2**64 - 1], pa.uint64())) == [2**64 - 1]


def test_a_nul_is_replaced_where_it_cannot_be_held() -> None:
    assert plain(pa.array(["a\0b", None])) == ["a\0b", None]
    assert plain(pa.array(["a\0b", None]), "postgres") == ["a\ufffdb", None]


def test_a_nul_in_a_key_is_refused_where_it_cannot_be_held() -> None:
    with pytest.raises(SourceError, match="key column x"):
        plain(pa.array(["a\0b"]), "postgres", key=True)


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        (r'"\u0000"', '"\ufffd"'),
        (r'"\ud83d"', '"\ufffd"'),
        (r'"\uD83D\uDE00"', '"😀"'),
        (r'"\\u0000"', r'"\\u0000"'),
        (r'{"\ude00":[1.5,null]}', '{"\ufffd":[1.5,null]}'),
    ],
)
def test_json_keeps_only_characters_that_databases_take(text: str, mended: str) -> None:
    assert plain(pa.array([text, None], pa.json_(pa.string()))) == [mended, None]


@pytest.mark.parametrize("name", ["mysql", "redshift", "tsql"])
def test_keys_that_end_in_blanks_are_refused_where_these_do_not_count(name: str) -> None:
    padded = pa.record_batch({"a": ["x"], "b": ["x "]})
    refuse_padded_keys(padded, ["a"], find_dialect(name))
    with pytest.raises(SourceError, match=r"key column b .* end in blanks"):
        refuse_padded_keys(padded, ["a", "b"], find_dialect(name))
    refuse_padded_keys(padded, ["b"], find_dialect("postgres"))


def test_an_instant_is_a_wall_clock_in_utc_where_no_zone_is_kept() -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    column = pa.record_batch({"at": pa.array([noon], pa.timestamp("us", tz="Europe/Berlin"))})
    assert plain_batch(column, frozenset(), find_dialect("mysql")).to_pylist() == [
        {"at": noon.astimezone(UTC).replace(tzinfo=None)}
    ]
