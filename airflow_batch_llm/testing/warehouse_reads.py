"""The contract's cases about reading, and about keys and carried columns of every type on every way that a row can take."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pyarrow as pa
import pytest

from airflow_batch_llm.core.request import canonical
from airflow_batch_llm.core.settings import Exhausted, Guards, Source, WriteMode
from airflow_batch_llm.core.value import plain
from airflow_batch_llm.errors import BatchLLMError, SourceError
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.simulator.request import AskedRequest, Reply, RowError, StopReason
from airflow_batch_llm.stage.plan.carried import carried, carried_schema
from airflow_batch_llm.stage.plan.partitions import table_ranges
from airflow_batch_llm.testing.leaks import text_of
from airflow_batch_llm.testing.staged_rows import (
    TARGET,
    BenchDatabase,
    WholeStage,
    at,
    batch,
    labels,
    land,
    part,
)
from airflow_batch_llm.warehouses.base import (
    KNOWN_COLUMNS,
    JoinsKnown,
    KeepsReviews,
    NamesTables,
    ReadsRanges,
    Warehouse,
)
from airflow_batch_llm.warehouses.kind import of_arrow

_NOTHING: dict[str, Any] = dict.fromkeys(KNOWN_COLUMNS.names)


def known(**values: Any) -> dict[str, Any]:
    """Return a row of `KNOWN_COLUMNS`, NULL where nothing is said."""
    return {**_NOTHING, **{f"_llm_{name}": value for name, value in values.items()}}


class KnowsKeys:
    """`known`, and `read_known` where the adapter has it."""

    def test_known_answers_in_the_order_of_the_keys(self, warehouse: Warehouse) -> None:
        target = labels()
        warehouse.prepare(target)
        answers = [
            {"id": 1, "_llm_input_hash": "i1", "_llm_spec_hash": "s1"},
            {"id": 2, "_llm_input_hash": "i2"},
        ]
        land(warehouse, target, part(), answers, [{"id": 3, "_llm_attempts": 2, "_llm_dead": True}])
        found = warehouse.known(target, batch(target.key, [{"id": n} for n in (9, 3, 1, 2, 1)]))
        first = known(known_input_hash="i1", known_spec_hash="s1")
        failed = known(
            failed_input_hash="input", failed_spec_hash="spec", failed_attempts=2, failed_dead=True
        )
        assert found.schema.equals(KNOWN_COLUMNS)
        second = known(known_input_hash="i2", known_spec_hash="spec")
        assert found.to_pylist() == [_NOTHING, failed, first, second, first]

    def test_known_of_no_keys_is_empty(self, warehouse: Warehouse) -> None:
        target = labels()
        warehouse.prepare(target)
        assert warehouse.known(target, batch(target.key, [])).num_rows == 0

    def test_known_takes_keys_of_several_columns_and_many_rows(self, warehouse: Warehouse) -> None:
        target = labels(key=pa.schema([("r", pa.string()), ("n", pa.int64())]))
        warehouse.prepare(target)
        land(
            warehouse,
            target,
            part(),
            [{"r": "b", "n": n, "_llm_input_hash": f"{n}"} for n in range(2000)],
        )
        asked = [{"r": "ab"[n % 2], "n": n // 2} for n in range(4000)]
        found = warehouse.known(target, batch(target.key, asked)).column("_llm_known_input_hash").to_pylist()
        assert found == [None if n % 2 == 0 else f"{n // 2}" for n in range(4000)]

    def test_known_tells_of_the_answer_planned_last(self, warehouse: Warehouse) -> None:
        target = labels(write_mode=WriteMode.APPEND)
        warehouse.prepare(target)
        for n in (1, 3, 2):
            row = {"id": 1, "_llm_input_hash": f"plan {n}", "_llm_planned_at": at(n)}
            land(warehouse, target, part(run=f"run-{n}"), [row])
        (found,) = warehouse.known(target, batch(target.key, [{"id": 1}])).to_pylist()
        assert found["_llm_known_input_hash"] == "plan 3"

    def test_read_known_is_the_source_with_what_is_known_beside_it(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        if not isinstance(warehouse, JoinsKnown):
            return
        target = labels(key=pa.schema([("r", pa.int64())]))
        ids = pa.array([1, 2, 3], pa.int64())
        database.seed("tickets", pa.table({"r": ids, "body": ["a", "b", "c"]}))
        source = Source(sql="SELECT r, body FROM tickets ORDER BY r; ", key=("r",))
        before = warehouse.read_known(source, target).read_all()
        assert [before.schema.field(n).type for n in KNOWN_COLUMNS.names] == KNOWN_COLUMNS.types
        assert before.num_rows == 3
        release(warehouse)
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"r": 1, "_llm_input_hash": "i1"}], [{"r": 2}])
        found = sorted(warehouse.read_known(source, target).read_all().to_pylist(), key=lambda row: row["r"])
        assert found == [
            {"r": 1, "body": "a", **known(known_input_hash="i1", known_spec_hash="spec")},
            {
                "r": 2,
                "body": "b",
                **known(
                    failed_input_hash="input", failed_spec_hash="spec", failed_attempts=1, failed_dead=False
                ),
            },
            {"r": 3, "body": "c", **_NOTHING},
        ]
        needed = warehouse.read_known(replace(source, columns=("r",)), target).read_all()
        assert needed.sort_by("r").select(["r", *KNOWN_COLUMNS.names]).to_pylist() == [
            {name: value for name, value in row.items() if name != "body"} for row in found
        ]


def release(warehouse: Warehouse) -> None:
    """Let go of a shared file, as the stage does between reading and writing."""
    if hasattr(warehouse, "release"):
        warehouse.release()


#: One column of each type that a source may have, and a value of it.
TYPED: dict[str, tuple[pa.DataType, Any]] = {
    "a_string": (pa.string(), "plain"),
    "an_int": (pa.int64(), -(2**53) - 1),
    "a_double": (pa.float64(), 0.1),
    "a_decimal": (pa.decimal128(12, 2), Decimal("1234567890.12")),
    "a_bool": (pa.bool_(), True),
    "a_date": (pa.date32(), date(2026, 2, 28)),
    "an_instant": (pa.timestamp("us", tz="UTC"), datetime(2026, 2, 28, 23, 59, 59, 123456, tzinfo=UTC)),
    "a_blob": (pa.binary(), b"\x00\xff"),
}


class ReadsRows:
    """The contract for reading rows."""

    @pytest.fixture
    def warehouse(self, database: BenchDatabase) -> Iterator[Warehouse]:
        opened = database.open()
        yield opened
        opened.close()

    def test_every_type_is_read_as_it_is_stored(self, database: BenchDatabase, warehouse: Warehouse) -> None:
        schema = pa.schema([("id", pa.int64()), *((name, type_) for name, (type_, _) in TYPED.items())])
        values = {name: value for name, (_, value) in TYPED.items()}
        database.seed("typed", pa.Table.from_batches([batch(schema, [{"id": 1, **values}, {"id": 2}])]))
        found = warehouse.read(Source(sql="SELECT * FROM typed ORDER BY id")).read_all()
        assert found.to_pylist() == [{"id": 1, **values}, {"id": 2, **dict.fromkeys(values)}]
        assert {name: of_arrow(found.schema.field(name).type) for name in TYPED} == {
            name: of_arrow(type_) for name, (type_, _) in TYPED.items()
        }

    def test_a_source_table_that_is_missing_is_the_source_s_error(self, warehouse: Warehouse) -> None:
        with pytest.raises(BatchLLMError, match=r"(?i)source|no table") as refused:
            warehouse.read(Source(table="nowhere")).read_all()
        assert not refused.value.retryable
        assert "Target" not in type(refused.value).__name__

    @pytest.mark.parametrize(
        ("sql", "is_read"),
        [
            ("SELECT * FROM labels", True),
            ("WITH recent AS (SELECT * FROM labels) SELECT id FROM recent", True),
            ("WITH labels AS (SELECT * FROM tickets) SELECT * FROM labels", False),
            ("SELECT * FROM tickets WHERE id NOT IN (SELECT id FROM labels AS l)", True),
            ("SELECT labels.id FROM tickets AS labels -- FROM labels", False),
            ("SELECT * FROM other_schema.labels", False),
            ("SELECT FROM WHERE", False),
        ],
    )
    def test_the_tables_that_a_source_reads_are_known(
        self, warehouse: Warehouse, sql: str, is_read: bool
    ) -> None:
        assert isinstance(warehouse, NamesTables)
        assert warehouse.reads_table(Source(sql=sql), "labels") is is_read

    def test_a_source_table_is_known_by_every_name(self, warehouse: Warehouse) -> None:
        assert isinstance(warehouse, NamesTables)
        assert warehouse.reads_table(Source(table="labels"), "labels")
        assert not warehouse.reads_table(Source(table="tickets"), "labels")

    def test_an_empty_result_has_the_schema_of_a_full_one(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        database.seed("whole", pa.table({"id": pa.array([1], pa.int64()), "body": ["x"], "score": [0.5]}))
        full = warehouse.read(Source(sql="SELECT id, body, score FROM whole"))
        full.read_all()
        empty = warehouse.read(Source(sql="SELECT id, body, score FROM whole WHERE id = 2"))
        assert empty.schema == full.schema
        assert empty.read_all().num_rows == 0

    def test_no_error_nor_its_chain_holds_a_rows_value(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        canary = f"canary-{uuid4().hex}"  # not in this file's text, which a traceback quotes
        database.seed("bodies", pa.table({"id": pa.array([1, 2], pa.int64()), "body": ["3", canary]}))
        found = ""
        try:  # some databases make 0 of any text
            warehouse.read(Source(sql="SELECT CAST(body AS INTEGER) AS n FROM bodies")).read_all()
        except BatchLLMError as error:
            found = text_of(error)
        assert canary not in found

    def test_a_table_is_read_by_its_name(self, database: BenchDatabase, warehouse: Warehouse) -> None:
        database.seed("order", pa.table({"select": pa.array([1], pa.int64())}))
        assert warehouse.read(Source(table="order")).read_all().to_pylist() == [{"select": 1}]

    def test_ranges_of_a_table_hold_each_row_once(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        if not isinstance(warehouse, ReadsRanges):
            return
        columns = ("a_decimal", "a_date", "an_instant")
        values = [
            (Decimal(n) / 4, date(2026, 2, 20 + n), datetime(2026, 2, 28, n, 30, tzinfo=UTC))
            for n in range(6)
        ]
        rows = [{"id": n, **dict(zip(columns, row, strict=True))} for n, row in enumerate(values)]
        schema = pa.schema([("id", pa.int64()), *((name, TYPED[name][0]) for name in columns)])
        database.seed("tickets", pa.Table.from_batches([batch(schema, [*rows, {"id": 6}])]))
        whole = Source(table="tickets")
        read = warehouse.read(whole).schema
        for column in schema.names:
            most = 3 if column == "id" else 2
            ranges = table_ranges(warehouse, whole, pa.schema([read.field(column)]), most)
            sources = [replace(whole, within=one) for one in ranges]
            found = [warehouse.read(one).read_all().column("id").to_pylist() for one in sources]
            assert sorted(chain.from_iterable(found)) == list(range(7)), column  # NULL is in the first
            assert [1 < len(ids) < 5 for ids in found] == [True] * most, column
        if isinstance(warehouse, JoinsKnown):
            counts = [warehouse.read_known(one, labels()).read_all().num_rows for one in sources]
            assert counts == list(map(len, found))

    def test_needed_columns_are_read_with_the_values_that_all_would_have(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        rows = {"id": pa.array([1, 2], pa.int64()), "select": ["x", None], "body": ["y", "z"]}
        database.seed("papers", pa.table(rows))
        for source in (
            Source(table="papers", columns=("select", "id")),
            Source(sql="SELECT * FROM papers WHERE id > 0 -- all", columns=("select", "id")),
        ):
            found = warehouse.read(source).read_all().select(["id", "select"]).sort_by("id")
            assert found.to_pylist() == [{"id": 1, "select": "x"}, {"id": 2, "select": None}]

    def test_many_rows_come_in_several_batches(self, database: BenchDatabase, warehouse: Warehouse) -> None:
        count = 100_000
        database.seed(
            "many", pa.table({"id": pa.array(range(count), pa.int64()), "body": ["x" * 40] * count})
        )
        sizes = [found.num_rows for found in warehouse.read(Source(table="many"))]
        assert sum(sizes) == count
        assert len(sizes) > 1

    def test_a_parameter_is_a_value_and_never_sql(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        hostile = "' OR '1'='1"
        database.seed("people", pa.table({"id": pa.array([1, 2], pa.int64()), "name": ["Ann", hostile]}))
        query = f"SELECT id FROM people WHERE name = {database.placeholder}"
        found = warehouse.read(Source(sql=query, parameters=[hostile])).read_all()
        assert found.to_pylist() == [{"id": 2}]

    def test_a_query_may_end_in_a_semicolon_or_a_comment(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        database.seed("one", pa.table({"id": pa.array([1], pa.int64())}))
        assert warehouse.read(Source(sql="SELECT id FROM one;\n")).read_all().num_rows == 1
        assert warehouse.read(Source(sql="SELECT id FROM one -- all of them")).read_all().num_rows == 1

    @pytest.mark.parametrize(
        "text",
        ["", "👩‍👩‍👧 ü\u2028\u2029", "'; DROP TABLE texts; --", 'a\r\n\t"b",\\N\\.', "x" * 5_000_000],
        ids=["empty", "unicode", "hostile", "delimiters", "5 MB"],
    )
    def test_a_text_is_read_unchanged(self, database: BenchDatabase, warehouse: Warehouse, text: str) -> None:
        database.seed("texts", pa.table({"id": pa.array([1, 2], pa.int64()), "body": [text, None]}))
        found = warehouse.read(Source(sql="SELECT body FROM texts ORDER BY id")).read_all()
        assert found.column("body").to_pylist() == [text, None]

    def test_a_query_that_fails_is_an_error_without_row_values(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        database.seed("secrets", pa.table({"id": pa.array([1], pa.int64()), "body": ["s3cret"]}))
        with pytest.raises(BatchLLMError) as caught:
            warehouse.read(Source(sql="SELECT CAST(body AS INTEGER) / nothing FROM secrets")).read_all()
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is None


#: Names that a planner's own queries might use.
_PLAIN_NAMES = ("part", "code", "hash")
_BODIES = ("twin", "twin", "unsendable", "refused", "late", "single", "elsewhere")
#: No number is divided by zero: row 2 has no prompt.
PROMPT = "{{ body }} {{ 1 // one }}"
_asked: set[str] = set()


def answer(request: AskedRequest) -> Reply:
    """Return the simulator's answer to a prompt of `things`."""
    if "refused" in request.prompt:
        return Reply(stop=StopReason.REFUSED)
    if "late" in request.prompt and request.prompt not in _asked:
        _asked.add(request.prompt)
        return Reply(error=RowError(500, "server_error", "Try again."))
    return Reply('{"label": "bug"}')


def things() -> pa.Table:
    """Return the table that the cases read.

    Rows 0 and 1 share a prompt, row 2 has none, row 3 is refused, row 4 is answered in a second round, row 5 holds
    NULLs, and row 6 is in flight in another run.
    """
    numbers = pa.array(range(len(_BODIES)), pa.int64())
    return pa.table({"n": numbers, "body": _BODIES, "one": pa.array([1, 1, 0, 1, 1, 1, 1], pa.int64())})


def walk_every_way(stage: WholeStage, elsewhere: Source) -> None:
    """Take `things` through a stage on every way there is. `elsewhere` is row 6 alone; the simulator uses `answer`."""
    stage.simulator.turn(batch_seconds=3600)
    stage.advance("elsewhere", source=elsewhere)
    (batch_id,) = stage.simulator.ledger()["openai"]["batches"]
    stage.simulator.turn(batch_seconds=0)
    tonight = stage.complete("tonight").report
    assert tonight.why == {"new": 5, "unsendable": 1, "in_flight": 1}
    assert tonight.attempts == {1: 4, 2: 1}
    assert tonight.final == {"succeeded": 4, "refused": 1, "errored": 1}
    stage.simulator.finish(batch_id)
    assert stage.complete("elsewhere").report.final == {"succeeded": 1}
    why = stage.complete("tomorrow").report.why
    assert why == {"answered": 5, "dead": 1, "unsendable": 1}, why
    assert stage.land_again("tonight") == 4
    assert stage.complete("later").report.why == {"answered": 5, "dead": 1, "unsendable": 1}


class CarriesColumns:
    """The contract for keys and carried columns, from the source to the target."""

    @pytest.fixture
    def running(self) -> Iterator[Simulator]:
        with Simulator(batch_seconds=0, responder=f"{__name__}:answer") as simulator:
            yield simulator

    @pytest.fixture
    def stage(self, database: BenchDatabase, running: Simulator, tmp_path: Path) -> WholeStage:
        """Return a stage over the things, with a column for each type that the database has."""
        database.seed("things", things())
        return WholeStage(
            simulator=running,
            folder=tmp_path / "stage",
            open=database.open,
            source=typed_things(database),
            key=tuple(f"key_{name}" for name in database.key_types),
            carry=carried_names(database),
            prompt=PROMPT,
            guards=Guards(
                min_success_ratio=0,
                on_exhausted=Exhausted.REVIEW if keeps_reviews(database) else Exhausted.RECORD,
            ),
        )

    def test_keys_and_carried_columns_of_every_type_arrive_on_every_way(
        self, database: BenchDatabase, stage: WholeStage
    ) -> None:
        walk_every_way(stage, typed_things(database, "n = 6"))
        warehouse = database.open()
        tables = [
            (TARGET, "n NOT IN (2, 3)", (*stage.key, *stage.carry)),
            (f"{TARGET}__failures", "n IN (2, 3)", stage.key),
        ]
        if isinstance(warehouse, KeepsReviews):
            tables.append((f"{TARGET}__review", "n = 3", (*stage.key, *stage.carry)))
        for table, rows, names in tables:
            found, there = (
                _said(warehouse, source, names)
                for source in (Source(table=table), typed_things(database, rows))
            )
            wrong = {name: (found[name], there[name]) for name in names if found[name] != there[name]}
            assert not wrong, wrong
        warehouse.close()

    def test_what_cannot_be_a_key_is_refused_by_its_name(
        self, database: BenchDatabase, stage: WholeStage
    ) -> None:
        for name in database.carried_types:
            stage.key = (f"carried_{name}",)
            with pytest.raises(
                SourceError, match=rf"'carried_{name}' cannot be a key.*CAST.*Nothing was sent"
            ):
                stage.advance(name)


def keeps_reviews(database: BenchDatabase) -> bool:
    """Return whether the warehouse keeps a review table."""
    warehouse = database.open()
    warehouse.close()
    return isinstance(warehouse, KeepsReviews)


def typed_things(database: BenchDatabase, where: str = "1 = 1") -> Source:
    """Return the things, with each of the database's types as a key and as a carried column that is NULL in row 5."""
    keys = [f"{expression} AS key_{name}" for name, expression in database.key_types.items()]
    both = {**database.key_types, **database.carried_types}
    beside = [
        f"CASE WHEN n <> 5 THEN {expression} END AS carried_{name}" for name, expression in both.items()
    ]
    plain = [f"n AS {name}" for name in _PLAIN_NAMES]
    return Source(sql=f"SELECT body, one, {', '.join([*keys, *beside, *plain])} FROM things WHERE {where}")


def carried_names(database: BenchDatabase) -> tuple[str, ...]:
    """Return the columns of `typed_things` that are carried."""
    typed = (f"carried_{name}" for name in (*database.key_types, *database.carried_types))
    return (*typed, *_PLAIN_NAMES)


def _said(warehouse: Warehouse, source: Source, names: Sequence[str]) -> dict[str, list[bytes]]:
    """Return the values of these columns, spelled alike whatever type they have, with the rows in one order."""
    found = warehouse.read(source).read_all()
    schema = carried_schema(found.schema, names)
    columns = [_spelled(carried(found.column(field.name).combine_chunks(), field.type)) for field in schema]
    rows = sorted(zip(*columns, strict=True))
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _spelled(column: pa.Array) -> list[bytes]:
    values: list[Any] = column.to_pylist()
    if isinstance(column.type, pa.JsonType):
        values = [None if value is None else orjson.loads(value) for value in values]
    return [canonical(plain(value)) for value in values]
