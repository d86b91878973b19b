"""A query's rows come out of PostgreSQL alike, by COPY and by the cursor that a query with parameters needs."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pyarrow as pa
import pytest

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import BatchLLMError, SourceError, WarehouseError
from airflow_batch_llm.stage.plan.partitions import table_ranges
from airflow_batch_llm.warehouses.postgres.warehouse import PostgresWarehouse

TYPES: dict[str, tuple[pa.DataType, list[str], list[Any] | None]] = {
    "bool": (pa.bool_(), ["true", "false", "NULL"], [True, False, None]),
    "int2": (pa.int16(), ["-32768", "NULL", "32767"], [-32768, None, 32767]),
    "int4": (pa.int32(), ["-2147483648", "0", "NULL"], [-(2**31), 0, None]),
    "int8": (pa.int64(), ["9223372036854775807", "NULL"], [2**63 - 1, None]),
    "float4": (pa.float32(), ["1.5", "'NaN'", "'Infinity'", "1e-45", "16777217", "NULL"], None),
    "float8": (pa.float64(), ["0.1", "'NaN'", "'-Infinity'", "1e-310", "'-0'", "1e300", "NULL"], None),
    "numeric(10,2)": (pa.decimal128(10, 2), ["1.5", "-12345678.90", "0", "NULL"], None),
    "numeric(38,0)": (pa.decimal128(38, 0), ["9" * 38, "NULL"], [int("9" * 38), None]),
    "numeric": (
        pa.string(),
        ["1.50", "1e-10", "1e30", "'NaN'", "NULL"],
        ["1.50", "0.0000000001", "1" + "0" * 30, "NaN", None],
    ),
    "text": (
        pa.string(),
        [
            "''",
            "NULL",
            "'a,b'",
            "'\"q\"'",
            "E'\\r\\n'",
            "E'\\r'",
            r"'\.'",
            r"'\N'",
            r"E'\\x41'",
            "' x '",
            "'🙂'",
        ],
        ["", None, "a,b", '"q"', "\r\n", "\r", r"\.", r"\N", r"\x41", " x ", "🙂"],
    ),
    "varchar(9)": (pa.string(), ["'NULL'", "''", "U&'\\FEFFa'", "'a;--'"], ["NULL", "", "\ufeffa", "a;--"]),
    "char(3)": (pa.string(), ["'a'", "''", "NULL"], ["a  ", "   ", None]),
    "bytea": (pa.binary(), [r"'\x00ff0a'", "''", "NULL"], [b"\x00\xff\n", b"", None]),
    "json": (pa.json_(pa.string()), ["""'{"a": [1,  2]}'""", "'null'", "NULL"], None),
    "jsonb": (pa.json_(pa.string()), ["""'{"b": "\\n", "a": 1}'""", "'\"\"'", "NULL"], None),
    "uuid": (pa.uuid(), ["'00112233-4455-6677-8899-aabbccddeeff'", "NULL"], None),
    "date": (pa.date32(), ["'2026-11-21'", "'0001-01-01'", "'9999-12-31'", "NULL"], None),
    "time": (pa.time64("us"), ["'12:34:56.789'", "'00:00'", "NULL"], None),
    "timetz": (pa.string(), ["'12:34:56+02'", "NULL"], ["12:34:56+02", None]),
    "timestamp": (pa.timestamp("us"), ["'2026-11-21 10:00:00.12'", "'0001-01-01'", "NULL"], None),
    "timestamptz": (pa.timestamp("us", "UTC"), ["'2026-11-21 10:00:00.12+05:30'", "NULL"], None),
    "interval": (pa.string(), ["'1 day 02:00'", "NULL"], ["1 day 02:00:00", None]),
    "int4[]": (pa.list_(pa.int32()), ["'{1,NULL,3}'", "'{}'", "NULL"], [[1, None, 3], [], None]),
    "float8[]": (pa.list_(pa.float64()), ["'{0.5,Infinity}'", "NULL"], [[0.5, float("inf")], None]),
    "text[]": (
        pa.list_(pa.string()),
        [r"""'{"a,\"b\"",NULL,"NULL","",🙂,"\\"}'""", "'{}'", "NULL"],
        [['a,"b"', None, "NULL", "", "🙂", "\\"], [], None],
    ),
    "date[]": (pa.string(), ["'{2026-11-21,NULL}'", "NULL"], ["{2026-11-21,NULL}", None]),
    "reads.mood": (pa.string(), ["'it''s, fine'", "NULL"], ["it's, fine", None]),
    "reads.amount": (pa.decimal128(9, 3), ["1.5", "NULL"], None),
    "inet": (pa.string(), ["'::ffff:1.2.3.4'", "'10.0.0.1/24'"], ["::ffff:1.2.3.4", "10.0.0.1/24"]),
    "daterange": (pa.string(), ["'[2026-01-01,2026-02-01)'"], ["[2026-01-01,2026-02-01)"]),
    "oid": (pa.string(), ["1", "NULL"], ["1", None]),
}
REFUSED = {
    "date": ["infinity", "0044-03-15 BC", "10000-01-01"],
    "time": ["24:00:00"],
    "timestamp": ["infinity", "0044-03-15 BC"],
    "timestamptz": ["-infinity"],
    "numeric(9,2)": ["NaN"],
}
ENDLESS = "SELECT id, generate_series(1, 1000000000) AS n FROM reads.endless"


@pytest.fixture(scope="module")
def server(postgres_uri: str) -> Iterator[str]:
    with psycopg.connect(postgres_uri) as connection:
        connection.execute("CREATE SCHEMA reads")
        connection.execute("CREATE TYPE reads.mood AS ENUM ('it''s, fine', 'bad')")
        connection.execute("CREATE DOMAIN reads.amount AS numeric(9,3)")
    yield postgres_uri
    with psycopg.connect(postgres_uri) as connection:
        connection.execute("DROP SCHEMA reads CASCADE")


@pytest.fixture
def warehouse(server: str) -> Iterator[PostgresWarehouse]:
    warehouse = PostgresWarehouse(server)
    yield warehouse
    warehouse.close()


@pytest.fixture
def endless(server: str) -> Iterator[str]:
    """A query that practically never ends, and the name of its connections."""
    with psycopg.connect(server) as connection:
        connection.execute("CREATE TABLE reads.endless AS SELECT 1 AS id")
    yield f"{server}&application_name=endless_{uuid4().hex}"
    with psycopg.connect(server) as connection:
        connection.execute("SET lock_timeout = '30s'")
        connection.execute("DROP TABLE IF EXISTS reads.endless")


def by_copy(warehouse: PostgresWarehouse, query: str) -> pa.Table:
    return warehouse.read(Source(sql=query)).read_all()


def by_cursor(warehouse: PostgresWarehouse, query: str) -> pa.Table:
    kept = f"SELECT * FROM ({query.replace('%', '%%')}) AS rows_ WHERE %s"
    return warehouse.read(Source(sql=kept, parameters=[True])).read_all()


def running(server: str) -> str:
    """The first word of what the connections named so run."""
    with psycopg.connect(server) as connection:
        (query,) = connection.execute(
            "SELECT query FROM pg_stat_activity WHERE application_name = current_setting('application_name')"
            " AND pid <> pg_backend_pid() AND query NOT LIKE '%%pg_stat_activity%%'"
        ).fetchone() or ("",)
    return str(query).split(" ", 1)[0]


@pytest.mark.parametrize("type_", TYPES)
def test_a_type_is_read_alike_both_ways(warehouse: PostgresWarehouse, type_: str) -> None:
    expected, values, told = TYPES[type_]
    rows = ", ".join(f"({n}, CAST({value} AS {type_}))" for n, value in enumerate(values))
    query = f"SELECT v FROM (VALUES {rows}) AS r (n, v) ORDER BY n"
    copied, fetched = by_copy(warehouse, query), by_cursor(warehouse, query)
    assert copied.schema == fetched.schema == pa.schema([("v", expected)])
    assert repr(copied["v"].to_pylist()) == repr(fetched["v"].to_pylist())  # NaN does not equal itself
    assert told is None or copied["v"].to_pylist() == told


def test_all_types_are_read_alike_side_by_side(warehouse: PostgresWarehouse) -> None:
    columns = ", ".join(f"CAST({values[0]} AS {type_}) AS v" for type_, (_, values, _) in TYPES.items())
    names = ", ".join(f"c{place}" for place in range(len(TYPES)))
    query = f"SELECT * FROM (SELECT {columns}) AS r ({names})"
    copied, fetched = by_copy(warehouse, query), by_cursor(warehouse, query)
    assert copied.schema == fetched.schema
    assert copied.to_pylist() == fetched.to_pylist()


@pytest.mark.parametrize(
    ("type_", "value"), [(type_, value) for type_, values in REFUSED.items() for value in values]
)
def test_a_value_beyond_its_arrow_type_is_refused_alike(
    warehouse: PostgresWarehouse, type_: str, value: str
) -> None:
    refusals = []
    for read in (by_copy, by_cursor):
        with pytest.raises(BatchLLMError) as refused:
            read(warehouse, f"SELECT CAST('{value}' AS {type_}) AS v")
        refusals.append((type(refused.value), str(refused.value)))
    assert refusals[0][0] is refusals[1][0] is SourceError
    for _, text in refusals:
        assert "CAST" in text
        assert value not in text.replace("infinity, NaN, or", "")


@pytest.mark.parametrize(
    ("setting", "query"),
    [
        ("datestyle%3DGerman", "SELECT date '2026-11-21' AS d, timestamptz '2026-11-21 10:00+00' AS t"),
        ("datestyle%3DSQL,DMY", "SELECT date '2026-02-01' AS d, timestamp '2026-02-01 10:00' AS t"),
        ("bytea_output%3Descape", r"SELECT CAST('\x00ff5c' AS bytea) AS b"),
        ("intervalstyle%3Diso_8601", "SELECT interval '1 day 2 hours' AS i"),
        ("extra_float_digits%3D-3", "SELECT 0.1::float8 + 0.2::float8 AS d, 16777217.1::float4 / 3 AS r"),
        ("client_encoding%3DLATIN1", "SELECT 'é' AS t, ARRAY['é'] AS l, CAST('é' AS bytea) AS b"),
    ],
)
def test_settings_of_the_session_change_no_value(
    server: str, warehouse: PostgresWarehouse, setting: str, query: str
) -> None:
    other = PostgresWarehouse(f"{server}&options=-c%20{setting}")
    assert by_copy(other, query).equals(by_copy(warehouse, query))
    other.close()


@pytest.mark.parametrize("end", ["", ";", " ; ", "; -- done;", "-- it's done", " ;; /* done */ -- ;"])
def test_a_query_may_end_as_it_likes(warehouse: PostgresWarehouse, end: str) -> None:
    rows = by_copy(warehouse, f"SELECT '50%; $1 %s' AS a, $$;$$ AS b{end}").to_pylist()
    assert rows == [{"a": "50%; $1 %s", "b": ";"}]


def test_columns_may_share_a_name(warehouse: PostgresWarehouse) -> None:
    read = warehouse.read(Source(sql="SELECT 1 AS a, 'x' AS a"))
    assert [batch.columns[1].to_pylist() for batch in read] == [["x"]]


def test_a_query_may_have_no_columns(warehouse: PostgresWarehouse) -> None:
    assert warehouse.read(Source(sql="SELECT FROM generate_series(1, 3)")).read_all().schema == pa.schema([])


@pytest.mark.parametrize("query", ["SELECT FROM WHERE", "SELECT * FROM nowhere", "SELECT 1; SELECT 2", ""])
def test_a_bad_query_is_refused_before_a_row_is_asked_for(warehouse: PostgresWarehouse, query: str) -> None:
    with pytest.raises(SourceError):
        warehouse.read(Source(sql=query))


def test_long_rows_and_many_short_rows_come_in_batches_of_bounded_size(warehouse: PostgresWarehouse) -> None:
    long = warehouse.read(Source(sql="SELECT repeat('é', 10000000) AS t FROM generate_series(1, 5)"))
    assert [batch["t"].to_pylist() == ["é" * 10_000_000] for batch in long] == [True] * 5
    short = warehouse.read(Source(sql="SELECT n FROM generate_series(1, 100000) AS n"))
    sizes = [batch.num_rows for batch in short]
    assert sum(sizes) == 100_000
    assert max(sizes) <= 20_000


def test_rows_are_those_that_were_there_when_the_read_began(
    server: str, warehouse: PostgresWarehouse
) -> None:
    with psycopg.connect(server) as connection:
        connection.execute("CREATE TABLE reads.growing AS SELECT 1 AS id")
    read = warehouse.read(Source(table="reads.growing"))
    with psycopg.connect(server) as connection:
        connection.execute("INSERT INTO reads.growing VALUES (2)")
    assert read.read_all().to_pylist() == [{"id": 1}]


@pytest.mark.parametrize(
    ("setting", "parameters", "word"),
    [("", None, "COPY"), ("", [], "FETCH"), ("&options=-c%20statement_timeout%3D1h", None, "FETCH")],
)
def test_a_cursor_reads_what_has_parameters_or_may_not_take_long(
    endless: str, setting: str, parameters: Any, word: str
) -> None:
    with closing(PostgresWarehouse(endless + setting)) as warehouse:
        read = warehouse.read(Source(sql=ENDLESS, parameters=parameters))
        assert read.read_next_batch().num_rows > 0
        assert running(endless) == word


@pytest.mark.parametrize("how", ["the reader is dropped", "the warehouse is closed"])
def test_a_read_that_is_left_early_ends_on_the_server(endless: str, how: str) -> None:
    warehouse = PostgresWarehouse(endless)
    read = warehouse.read(Source(sql=ENDLESS))
    assert read.read_next_batch().num_rows > 0
    if how == "the reader is dropped":
        del read
    else:
        warehouse.close()
    with psycopg.connect(endless) as connection:
        connection.execute("SET lock_timeout = '30s'")
        connection.execute("DROP TABLE reads.endless")  # waits until nobody reads it
    warehouse.close()


def test_a_read_that_was_ended_under_way_says_so(endless: str) -> None:
    warehouse = PostgresWarehouse(endless)
    read = warehouse.read(Source(sql=ENDLESS))
    read.read_next_batch()
    with psycopg.connect(endless) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()"
        )
    with pytest.raises(WarehouseError):
        for _ in read:
            pass
    warehouse.close()


def test_a_table_with_a_key_that_nobody_carries_is_one_range(server: str) -> None:
    """The reader of the row then says which one it is."""
    with psycopg.connect(server) as connection:
        connection.execute("CREATE TABLE reads.odd (id numeric(9,2), at date, body text)")
        connection.execute("INSERT INTO reads.odd VALUES (1, '2026-02-28', 'a'), ('NaN', 'infinity', 'b')")
    source = Source(table="reads.odd", key=("id",))
    with closing(PostgresWarehouse(server)) as warehouse:
        for column, type_ in (("id", pa.decimal128(9, 2)), ("at", pa.date32())):
            (whole,) = table_ranges(warehouse, source, pa.schema([(column, type_)]), 3)
            assert (whole.column, whole.low, whole.high) == (column, None, None)
        with pytest.raises(SourceError, match="The column id of the row with id=NaN holds"):
            warehouse.read(replace(source, within=whole, columns=("id", "at"))).read_all()


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("'infinity'::timestamptz", "seen"),
        ("'-infinity'::timestamp", "seen"),
        ("'infinity'::date", "seen"),
        ("'0044-03-15 BC'::date", "id"),
        ("'10000-01-01'::timestamp", "id"),
    ],
)
def test_a_value_that_no_column_of_ours_carries_is_named_by_row_and_column(
    postgres_uri: str, value: str, key: str
) -> None:
    sql = (
        f"SELECT g AS id, CASE g WHEN 7 THEN {value} END AS seen FROM generate_series(1, 9) AS g WHERE g > 3"
    )
    shown = "id=7" if key == "id" else f"seen={value.split(chr(39))[1]}"
    with closing(PostgresWarehouse(postgres_uri)) as warehouse:
        with pytest.raises(SourceError, match=f"The column seen of the row with {shown} holds"):
            warehouse.read(Source(sql=sql, key=(key,))).read_all()
        with pytest.raises(SourceError, match=r"seen|CAST"):
            warehouse.read(Source(sql=f"{sql} AND g > %s", parameters=[0], key=(key,))).read_all()
