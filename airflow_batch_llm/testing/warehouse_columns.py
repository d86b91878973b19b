"""The contract's cases about keys and carried columns of every type, on every way that a row can take."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from airflow_batch_llm.core.request import canonical
from airflow_batch_llm.core.settings import Exhausted, Guards, Source
from airflow_batch_llm.core.value import plain
from airflow_batch_llm.errors import SourceError
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.simulator.request import AskedRequest, Reply, RowError, StopReason
from airflow_batch_llm.stage.plan.carried import carried, carried_schema
from airflow_batch_llm.testing.staged_rows import TARGET, BenchDatabase, WholeStage
from airflow_batch_llm.warehouses.base import KeepsReviews, Warehouse

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
    """The table that the cases read.

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
        """A stage over the things, with a column for each type that the database has."""
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
    """The things, with each of the database's types as a key and as a carried column that is NULL in row 5."""
    keys = [f"{expression} AS key_{name}" for name, expression in database.key_types.items()]
    both = {**database.key_types, **database.carried_types}
    beside = [
        f"CASE WHEN n <> 5 THEN {expression} END AS carried_{name}" for name, expression in both.items()
    ]
    return Source(sql=f"SELECT body, one, {', '.join([*keys, *beside])} FROM things WHERE {where}")


def carried_names(database: BenchDatabase) -> tuple[str, ...]:
    """The columns of `typed_things` that are carried."""
    return tuple(f"carried_{name}" for name in (*database.key_types, *database.carried_types))


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
