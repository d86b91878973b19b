"""PostgreSQL keeps the contract of a warehouse."""

from collections.abc import Mapping
from contextlib import closing
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pyarrow as pa
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import (
    SourceError,
    TargetError,
    WarehouseBusy,
    WarehouseError,
    WarehouseUnreachable,
)
from airflow_batch_llm.testing.staged_rows import definition, labels, land, part, rows_of, stage
from airflow_batch_llm.testing.warehouses import WarehouseContract
from airflow_batch_llm.warehouses import find_dialect
from airflow_batch_llm.warehouses.postgres.warehouse import PostgresWarehouse
from airflow_batch_llm.warehouses.registration import Place

#: Expressions of the integer n, by the type that they have.
KEY_TYPES = {
    "boolean": "n % 2 = 0",
    "smallint": "n::smallint",
    "integer": "n::integer",
    "bigint": "n + 9007199254740993",
    "real": "(n / 2.0)::real",
    "double": "n / 2.0::double precision",
    "decimal": "(n + 0.01)::numeric(12, 2)",
    "coarse": "((n + 99990) * 100)::numeric(5, -2)",
    "fine": "(n * 0.00001)::numeric(3, 5)",
    "numeric": "n + 12345678901234567890123456789012345678901234567890.5",
    "text": "'it''s ' || n || chr(8232)",
    "char": "n::text::char(5)",
    "bytea": "('bytes ' || n)::bytea",
    "uuid": "('00000000-0000-4000-8000-00000000000' || n)::uuid",
    "date": "date '1969-12-30' + n::integer",
    "time": "time '12:34:56.789' + n * interval '1 s'",
    "timestamp": "timestamp '1969-12-31 23:59:59.123456' + n * interval '1 day'",
    "timestamptz": "timestamptz '2026-02-28 23:59:59.5+05:30' + n * interval '1 day'",
    "interval": "n * interval '1 day 2 hours'",
    "inet": "('10.0.0.' || n)::inet",
}
CARRIED_TYPES = {
    "json": """('{"b": [' || n || ', null], "a": 1.50}')::json""",
    "jsonb": """('{"b": [' || n || ', null], "a": 1.50}')::jsonb""",
    "doubles": "ARRAY[n / 2.0, NULL]::double precision[]",
    "integers": "ARRAY[n, n + 1]",
    "texts": "ARRAY['key ' || n, NULL]",
}


class PostgresDatabase:
    """A schema of a running server, looked at with psycopg."""

    placeholder = "%s"
    longest_name = 63
    nul = "\ufffd"
    key_types = KEY_TYPES
    carried_types = CARRIED_TYPES
    rules = frozenset({"not null", "generated", "unique", "check", "foreign key"})
    generated = "GENERATED ALWAYS AS ('x') STORED"

    def __init__(self, server: str) -> None:
        name = f"t{uuid4().hex}"
        with psycopg.connect(server) as connection:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        self.schema = name
        self.uri = f"{server}&options=-csearch_path%3D{name}"
        self.recipe: tuple[str, Mapping[str, Any]] = (f"{__name__}:open_warehouse", {"uri": self.uri})

    def open(self) -> PostgresWarehouse:
        return PostgresWarehouse(self.uri)

    def seed(self, table: str, rows: pa.Table) -> None:
        types = [sql.SQL(find_dialect("postgres").column_type(field.type)) for field in rows.schema]
        names = [sql.Identifier(name) for name in rows.schema.names]
        declared = [sql.SQL("{} {}").format(*pair) for pair in zip(names, types, strict=True)]
        name = sql.Identifier(table)
        with psycopg.connect(self.uri) as connection, connection.cursor() as cursor:
            cursor.execute(sql.SQL("CREATE TABLE {} ({})").format(name, sql.SQL(", ").join(declared)))
            with cursor.copy(sql.SQL("COPY {} FROM STDIN").format(name)) as copy:
                for row in rows.to_pylist():
                    copy.write_row(list(row.values()))

    def make(self, table: str, schema: pa.Schema, rules: Mapping[str, str], *constraints: str) -> None:
        with psycopg.connect(self.uri) as connection:
            connection.execute(
                definition(find_dialect("postgres"), table, schema, rules, *constraints).encode()
            )

    def tables(self) -> set[str]:
        with psycopg.connect(self.uri) as connection:
            found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
            return {name for (name,) in found.fetchall()}


def open_warehouse(uri: str) -> PostgresWarehouse:
    """The warehouse in another process."""
    return PostgresWarehouse(uri)


@pytest.fixture
def database(postgres_uri: str) -> PostgresDatabase:
    return PostgresDatabase(postgres_uri)


class TestContract(WarehouseContract):
    """The contract, in a schema of its own for each case."""


def test_staged_rows_that_a_crash_of_the_server_emptied_are_not_taken_for_none(
    database: PostgresDatabase,
) -> None:
    warehouse = database.open()
    warehouse.prepare(labels())
    stage(warehouse, labels(), part(), [{"id": 1, "label": "billing"}])
    with psycopg.connect(database.uri) as connection:
        (name,) = {name for name in database.tables() if name.endswith("_a")}
        connection.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(name)))
    with pytest.raises(WarehouseError, match="is not staged"):
        warehouse.publish(labels(), [part()])
    warehouse.close()


def test_keys_that_are_one_to_the_table_are_named_as_the_reason(database: PostgresDatabase) -> None:
    target = labels(key=pa.schema([("id", pa.decimal128(9, 2))]))
    database.make("labels", target.answer_columns, {"id": "PRIMARY KEY"})
    with psycopg.connect(database.uri) as connection:
        connection.execute("ALTER TABLE labels ALTER id TYPE numeric(9, 1)")
    warehouse = database.open()
    warehouse.prepare(target)
    with pytest.raises(TargetError, match="Two rows have one key in the table"):
        land(warehouse, target, part(), [{"id": Decimal("1.11")}, {"id": Decimal("1.12")}])
    warehouse.close()


def test_a_role_that_may_not_write_is_refused_before_anything_is_sent(database: PostgresDatabase) -> None:
    warehouse = database.open()
    warehouse.prepare(labels())
    warehouse.close()
    role = f"r{uuid4().hex}"
    with psycopg.connect(database.uri) as connection:
        names = {"role": sql.Identifier(role), "schema": sql.Identifier(database.schema)}
        for statement in (
            "CREATE ROLE {role}",
            "GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}",
            "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {schema} TO {role}",
        ):
            connection.execute(sql.SQL(statement).format(**names))
    reader = PostgresWarehouse(f"{database.uri}%20-crole%3D{role}")
    with pytest.raises(TargetError, match="permission denied for table labels"):
        reader.prepare(labels())
    reader.close()


def test_a_table_without_a_unique_index_is_merged_all_the_same(database: PostgresDatabase) -> None:
    target = labels()
    database.seed(target.table, target.answer_columns.empty_table())
    database.seed(target.failures, target.failure_columns.empty_table())
    warehouse = database.open()
    warehouse.prepare(target)
    for label in ("billing", "sales"):
        land(warehouse, target, part(), [{"id": 1, "label": label}], [{"id": 2}])
    assert [row["label"] for row in rows_of(database, target.table)] == ["sales"]
    assert len(rows_of(database, target.failures)) == 1
    warehouse.close()


@pytest.mark.parametrize("unique", [True, False])
def test_readers_and_a_publish_do_not_wait_for_each_other(database: PostgresDatabase, unique: bool) -> None:
    target, count = labels(), "SELECT count(*) FROM labels"
    with closing(database.open()) as warehouse, psycopg.connect(database.uri) as reader:
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "label": "old"}])
        if not unique:
            reader.execute("ALTER TABLE labels DROP CONSTRAINT labels_pkey")
            reader.commit()
        assert reader.execute(count).fetchone() == (1,)  # its transaction stays open
        stage(warehouse, target, part(1), [{"id": 1, "label": "new"}, {"id": 2, "label": "new"}])
        warehouse.publish(target, [part(1)])
        with warehouse._publishing(target):
            reader.execute("SET lock_timeout = 2000")
            assert reader.execute(count).fetchone() == (2,)


def test_staging_tables_live_in_the_schema_that_is_named(database: PostgresDatabase) -> None:
    other = f"s{uuid4().hex}"
    with psycopg.connect(database.uri) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(other)))
    target = labels(staging_schema=other)
    warehouse = database.open()
    warehouse.prepare(target)
    stage(warehouse, target, part(), [{"id": 1}])
    assert database.tables() == {target.table, target.failures}
    warehouse.publish(target, [part()])
    assert len(rows_of(database, target.table)) == 1
    warehouse.close()


def test_types_without_an_arrow_type_are_read_as_text(database: PostgresDatabase) -> None:
    warehouse = database.open()
    query = (
        "SELECT 1.50::numeric AS n, interval '1 day' AS i, '{1,2}'::int[] AS l, "
        "gen_random_uuid() AS u, '{}'::json AS j"
    )
    found = warehouse.read(Source(sql=query)).read_all()
    assert found.select(["n", "i", "l", "j"]).to_pylist() == [
        {"n": "1.50", "i": "1 day", "l": [1, 2], "j": "{}"}
    ]
    assert str(found.schema.field("u").type) == "extension<arrow.uuid>"
    warehouse.close()


@pytest.mark.parametrize(
    "key", ["CAST(1.50 AS numeric)", "CAST('a' AS char(3))", "CAST('a ' AS varchar(3))", "interval '1 day'"]
)
def test_a_key_that_is_read_as_text_is_known_where_it_is_joined(database: PostgresDatabase, key: str) -> None:
    source = Source(sql=f"SELECT {key} AS id", key=("id",))
    warehouse = database.open()
    rows = warehouse.read(source).read_all()
    target = labels(key=pa.schema([rows.schema.field("id")]))
    warehouse.prepare(target)
    land(warehouse, target, part(), [{"id": rows["id"][0].as_py(), "_llm_input_hash": "i1"}])
    (found,) = warehouse.read_known(source, target).read_all().to_pylist()
    warehouse.close()
    assert found["_llm_known_input_hash"] == "i1"


def test_a_connection_that_was_lost_is_opened_anew(database: PostgresDatabase) -> None:
    warehouse = database.open()
    warehouse.prepare(labels())
    with psycopg.connect(database.uri) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
        )
    with pytest.raises(WarehouseError):
        warehouse.prepare(labels())
    warehouse.prepare(labels())
    warehouse.close()


def test_connections_may_come_from_a_hook(database: PostgresDatabase) -> None:
    warehouse = PostgresWarehouse(lambda: psycopg.connect(database.uri))
    assert warehouse.read(Source(sql="SELECT 1 AS one")).read_all().to_pylist() == [{"one": 1}]
    assert warehouse.asset_uri == "postgres://localhost:5432/postgres"
    warehouse.close()


def test_a_server_that_is_not_there_is_named_and_may_be_tried_again() -> None:
    warehouse = PostgresWarehouse("postgresql://etl:secret@127.0.0.1:1/support")

    with pytest.raises(WarehouseUnreachable, match=r"cannot be reached: .*127\.0\.0\.1.* port 1 ") as told:
        warehouse.read(Source(table="tickets"))

    assert "secret" not in str(told.value)


def test_a_place_is_the_same_whichever_host_answers_and_names_the_schema(database: PostgresDatabase) -> None:
    socket = conninfo_to_dict(database.uri)["host"]
    for hosts, ports in ((f"127.0.0.1,{socket}", "1,5432"), (f"{socket},127.0.0.1", "5432,1")):
        uri = make_conninfo(database.uri, host=hosts, port=ports, password="s3cret")
        by_function = PostgresWarehouse(partial(psycopg.connect, uri), servers={"host": hosts, "port": ports})
        for one in (PostgresWarehouse(uri), by_function):
            with closing(one) as warehouse:
                assert warehouse.place("labels") == Place(
                    database="postgres://127.0.0.1:1,localhost:5432/postgres",
                    table=f"{database.schema}.labels",
                )


def test_a_connection_that_the_server_ends_may_be_tried_again(database: PostgresDatabase) -> None:
    warehouse = database.open()
    reader = warehouse.read(Source(sql="SELECT g FROM generate_series(1, 999983) AS g"))

    with psycopg.connect(database.uri, autocommit=True) as other:
        ended = other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE '%999983%' AND pid <> pg_backend_pid()"
        )
        assert ended.fetchall() == [(True,)]

    with pytest.raises(WarehouseBusy):
        reader.read_all()


def test_row_level_security_that_applies_to_the_role_is_refused(database: PostgresDatabase) -> None:
    role = f"r{uuid4().hex}"
    with closing(database.open()) as owner:
        owner.prepare(labels())
    with psycopg.connect(database.uri) as connection:
        for statement in (
            f"CREATE ROLE {role} LOGIN PASSWORD 'x'",
            f"GRANT ALL ON SCHEMA {database.schema} TO {role}",
            f"GRANT ALL ON ALL TABLES IN SCHEMA {database.schema} TO {role}",
            "ALTER TABLE labels ENABLE ROW LEVEL SECURITY",
        ):
            connection.execute(statement.encode())

    def connect() -> psycopg.Connection[Any]:
        connection = psycopg.connect(database.uri)
        connection.execute(f"SET ROLE {role}".encode())
        connection.commit()
        return connection

    with pytest.raises(TargetError, match=r"labels .*row-level security"):
        PostgresWarehouse(connect).prepare(labels())
    with closing(database.open()) as owner:
        owner.prepare(labels())


def test_identities_domains_and_partial_indexes_count_as_rules(database: PostgresDatabase) -> None:
    with psycopg.connect(database.uri) as connection:
        connection.execute("CREATE DOMAIN word AS text NOT NULL CHECK (VALUE <> 'x')")
        connection.execute(
            "CREATE TABLE labels (id int8 GENERATED ALWAYS AS IDENTITY, label word, run int8 GENERATED BY DEFAULT AS IDENTITY)"
        )
        connection.execute("CREATE UNIQUE INDEX once ON labels (label) WHERE label <> 'y'")
    with pytest.raises(TargetError) as refused:
        database.open().prepare(labels())
    assert "id is GENERATED" in str(refused.value)
    assert "label is NOT NULL" in str(refused.value)
    assert "word_check (CHECK on label)" in str(refused.value)
    assert "once (UNIQUE on label)" in str(refused.value)
    assert "run" not in str(refused.value).replace("_llm_run", "")


def test_no_right_to_read_the_source_is_said_of_the_source(database: PostgresDatabase) -> None:
    role = f"r{uuid4().hex}"
    database.seed("tickets", pa.table({"id": pa.array([1], pa.int64())}))
    with psycopg.connect(database.uri) as connection:
        connection.execute(f"CREATE ROLE {role}; GRANT ALL ON SCHEMA {database.schema} TO {role}".encode())

    def connect() -> psycopg.Connection[Any]:
        connection = psycopg.connect(database.uri)
        connection.execute(f"SET ROLE {role}".encode())
        connection.commit()
        return connection

    with closing(PostgresWarehouse(connect)) as warehouse:
        for source in (
            Source(table="tickets"),
            Source(sql="SELECT id FROM tickets WHERE id > %s", parameters=[0]),
        ):
            with pytest.raises(SourceError, match=r"source .*tickets.* Grant SELECT"):
                warehouse.read(source)
            with pytest.raises(SourceError, match=r"source .*tickets.* Grant SELECT"):
                warehouse.read_known(source, labels())
