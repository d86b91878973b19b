"""Targets, staged rows and a whole stage for tests of a warehouse: what is not said gets a plain default.

The simulator answers the whole stage, and time is moved, not waited for.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import time as real_time
from typing import Any, Protocol

import pyarrow as pa

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.settings import Guards, Only, Shape, Source, Stage
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.stage.drive import complete
from airflow_batch_llm.stage.land.finishing import Finished, land_again
from airflow_batch_llm.stage.parts import Parts, ReadsSource
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.run import Run
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.base import ARROW_TYPES, Part, Target, Warehouse
from airflow_batch_llm.warehouses.dialect import Dialect


class BenchDatabase(Protocol):
    """An empty database for one test."""

    #: `module:function` and keyword arguments that open the warehouse in another process.
    recipe: tuple[str, Mapping[str, Any]]
    #: The driver's form of the first parameter of a query ("?", "%s" …).
    placeholder: str
    #: The longest column name that it keeps, in bytes; None where none is too long.
    longest_name: int | None
    #: The text that takes the place of a NUL character.
    nul: str
    #: For each type that a key may have: an expression that makes a value of it of the integer column `n`.
    key_types: Mapping[str, str]
    #: The same for each type that can be carried and cannot be a key.
    carried_types: Mapping[str, str]
    #: The rules that its catalogue tells of: "not null", "generated", "unique", "check", "foreign key",
    #: and "collate" with the name of a collation in which 'a' is 'A'.
    rules: frozenset[str]
    #: The declaration of a computed column, after its type.
    generated: str

    def open(self) -> Warehouse:
        """A new adapter on the database. The contract closes it."""

    def seed(self, table: str, rows: pa.Table) -> None:
        """Create a table with these rows and the database's types for them, by the database's own client.

        The name and the columns' names are to be quoted.
        """

    def make(self, table: str, schema: pa.Schema, rules: Mapping[str, str], *constraints: str) -> None:
        """Create an empty table with the database's types. `rules` stand after the types of these columns."""

    def tables(self) -> set[str]:
        """Return the names of all tables that exist."""


def definition(
    dialect: Dialect, table: str, schema: pa.Schema, rules: Mapping[str, str], *constraints: str
) -> str:
    """Return the CREATE TABLE of `Database.make`, for databases that take one."""
    columns = [
        f"{dialect.quote(field.name)} {dialect.column_type(field.type, key=field.name == 'id')} {rules.get(field.name, '')}"
        for field in schema
    ]
    return f"CREATE TABLE {dialect.quote(table)} ({', '.join([*columns, *constraints])})"


def rows_of(database: BenchDatabase, table: str) -> list[dict[str, Any]]:
    """Return all rows of a table, read through the adapter, sorted by their first column."""
    warehouse = database.open()
    try:
        found = warehouse.read(Source(table=table)).read_all()
    finally:
        warehouse.close()
    rows: list[dict[str, Any]] = found.to_pylist()
    return sorted(rows, key=lambda row: [str(value) for value in row.values()])


#: The instant at which the first plan of a test was made; `at(3)` is three seconds later.
START = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)

Row = Mapping[str, Any]


def at(seconds: float) -> datetime:
    """Return an instant on the tests' clock."""
    return START + timedelta(seconds=seconds)


def columns(**types: ColumnType) -> pa.Schema:
    """Return an answer's columns by name."""
    return pa.schema([(name, ARROW_TYPES[type_]) for name, type_ in types.items()])


def labels(**changes: Any) -> Target:
    """Return a target whose answers are one label by one integer key, with the changes asked for."""
    values: dict[str, Any] = {
        "table": "labels",
        "key": pa.schema([("id", pa.int64())]),
        "answer": columns(label=ColumnType.STRING),
    }
    values.update(changes)
    values.setdefault("failures", values["table"] + "__failures")
    return Target(**values)


def part(shard: int = 0, *, run: str = "run-1", round: int = 1) -> Part:  # noqa: A002  the word is the contract's
    """Return one shard of a run."""
    return Part(run_id=run, round=round, shard=shard)


def stage(
    warehouse: Warehouse, target: Target, of: Part, answers: Iterable[Row] = (), failures: Iterable[Row] = ()
) -> None:
    """Stage rows given as mappings."""
    warehouse.load(
        target,
        of,
        _reader(target.answer_columns, of, answers),
        _reader(target.failure_columns, of, failures),
    )


def land(
    warehouse: Warehouse, target: Target, of: Part, answers: Iterable[Row] = (), failures: Iterable[Row] = ()
) -> None:
    """Stage one part and publish it."""
    stage(warehouse, target, of, answers, failures)
    warehouse.publish(target, [of])
    warehouse.drop_loaded(target, [of])


def batch(schema: pa.Schema, rows: Iterable[Row]) -> pa.RecordBatch:
    """Return rows as a record batch; a column that a row does not name is NULL."""
    listed = list(rows)
    arrays = [pa.array([row.get(field.name) for row in listed], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _reader(schema: pa.Schema, of: Part, rows: Iterable[Row]) -> pa.RecordBatchReader:
    bookkeeping = {
        "_llm_input_hash": "input",
        "_llm_spec_hash": "spec",
        "_llm_model": "model",
        "_llm_run_id": of.run_id,
        "_llm_shard": of.shard,
        "_llm_batch_id": "batch",
        "_llm_planned_at": START,
        "_llm_processed_at": at(60),
        "_llm_input_tokens": 7,
        "_llm_cached_tokens": 0,
        "_llm_output_tokens": 3,
        "_llm_cost_usd": 0.25,
        "_llm_shared": False,
        "_llm_outcome": "refused",
        "_llm_attempts": 1,
        "_llm_dead": False,
    }
    full = [{**bookkeeping, **row} for row in rows]
    return pa.RecordBatchReader.from_batches(schema, [batch(schema, full)] if full else [])


#: Where the answers land.
TARGET = "answers"


@dataclass(slots=True, kw_only=True)
class WholeStage:
    """Runs of one stage against OpenAI's wire protocol. `open` gives a new adapter, which each step closes."""

    simulator: Simulator
    folder: Path
    open: Callable[[], Warehouse]
    source: Source
    key: tuple[str, ...]
    carry: tuple[str, ...] = ()
    prompt: str = "{{ body }}"
    guards: Guards = field(default_factory=lambda: Guards(min_success_ratio=0))
    only: Only = Only.CHANGED
    files: ReadsSource | None = None  # what the source is read from; None: the warehouse
    _ahead: float = field(default=0.0, init=False)

    def complete(self, name: str, **changes: Any) -> Finished:
        """Drive a run to its end."""
        with self._run(name, **changes) as run:
            return complete(run, sleep=self._sleep)

    def advance(self, name: str, **changes: Any) -> object:
        """Take one step of a run."""
        with self._run(name, **changes) as run:
            return run.advance()

    def land_again(self, name: str) -> int:
        """Merge the answers of a finished run once more; returns how many there are."""
        with self._run(name) as run:
            workspace = run.parts.workspace
            return land_again(run.parts, RunFolder(workspace=workspace, run=name, generation=1))

    @contextmanager
    def _run(self, name: str, source: Source | None = None) -> Iterator[Run]:
        target = self.open()
        provider = connect("openai", Access(api_key="any", base_url=self.simulator.openai_url))
        parts = Parts(
            provider=provider,
            source=self.files or target,
            target=target,
            workspace=Workspace.open(str(self.folder / "workspace")),
            spool=self.folder / "spool",
            clock=lambda: real_time() + self._ahead,
        )
        stage = Stage(
            source=source or self.source,
            key=self.key,
            model_id="openai:gpt-5-mini",
            prompt=self.prompt,
            output_type=["billing", "bug"],
            target=TARGET,
            shape=Shape(carry=self.carry),
            only=self.only,
            guards=self.guards,
        )
        try:
            yield Run(stage=stage, parts=parts, name=name)
        finally:
            target.close()
            provider.close()

    def _sleep(self, seconds: float) -> None:
        self._ahead = self.simulator.clock(advance_seconds=seconds, settle=True) - real_time()
