"""Reuse answers that exist already under another key: a row with the same input gets a copy of the answer, and no request.

A plan looks for the rows. The answers are copied once, before the run waits for anything, so that they hardly ever
disappear before. Each step may be repeated: a row that has its copy is left alone.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.core.checked import REUSE_NONE
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.core.settings import Only, Stage
from airflow_batch_llm.errors import InputError, TargetError, WarehouseError
from airflow_batch_llm.stage.land.landing import Bookkeeping, no_rows, parquet_reader
from airflow_batch_llm.stage.parts import Parts, stage_tables
from airflow_batch_llm.stage.plan.carried import restored
from airflow_batch_llm.stage.plan.resolved import Resolved
from airflow_batch_llm.stage.plan.shard_files import fetch_unsendable
from airflow_batch_llm.stage.plan.spool import INPUT_HASH, REUSED_SPEC, Spool
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.warehouses.arrow import bool_array, float64_array, int64_array
from airflow_batch_llm.warehouses.base import CopiesAnswers, Part, Target, Warehouse

#: The most inputs of one query that looks for their two hashes. For more inputs it is cheaper to read every hash once.
_NAMED_AT_ONCE, _NAMED = 1_000, 8_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Looks for answers in the target, and in the other tables that the stage names."""

    warehouse: Warehouse
    target: Target
    resolved: Resolved
    donors: tuple[str, ...]
    """The tables to look into, in this order. Empty: nothing is reused."""

    @classmethod
    def of(cls, stage: Stage, warehouse: Warehouse, target: Target, resolved: Resolved) -> "Reuse":
        """Return the reuse that the stage asks for, as far as the warehouse can copy answers."""
        reuse = stage.guards.reuse
        others = () if isinstance(reuse, str) else reuse
        donors = (stage.target, *(table for table in others if table != stage.target))
        if reuse == REUSE_NONE or stage.only is Only.ALL:
            donors = ()
        if donors and not isinstance(warehouse, CopiesAnswers):
            if len(donors) > 1:
                raise InputError(
                    f"reuse names tables, and {type(warehouse).__name__} cannot copy answers between tables. Leave out"
                    " reuse, or use another warehouse for the target. Nothing was sent."
                )
            donors = ()
        return cls(warehouse=warehouse, target=target, resolved=resolved, donors=donors)

    @property
    def specs(self) -> list[str]:
        """The specs whose answers are current for some route."""
        return list(dict.fromkeys(spec for specs in self._by_route() for spec in specs))

    def _by_route(self) -> list[list[str]]:
        """Return the specs whose answers are current for each route, its own first."""
        routes = zip(self.resolved.routes, self.resolved.current.specs, strict=True)
        return [[route.spec_hash, *sorted(specs - {route.spec_hash})] for route, specs in routes]

    def look(self, spool: Spool) -> None:
        """Note the inputs of the spooled rows that have answers."""
        if not self.donors or not (wanted := spool.reusable()):
            return
        for number, spec in enumerate(self.specs):
            for table in self.donors:
                try:
                    spool.note_answered(number, self._answered(spool, table, spec, wanted))
                except TargetError:
                    if table != self.target.table:
                        raise
                    # A plan that is only looked at makes no target.

    def choose(self, spool: Spool) -> int:
        """Choose the rows that get a copy, once more after other rows are taken out. Returns their number."""
        numbers = {spec: number for number, spec in enumerate(self.specs)}
        return spool.reuse([[numbers[spec] for spec in specs] for specs in self._by_route()])

    def _answered(self, spool: Spool, table: str, spec: str, wanted: int) -> Iterator[pa.RecordBatch]:
        assert isinstance(self.warehouse, CopiesAnswers), "there are donors"
        some = spool.reusable_hashes(_NAMED_AT_ONCE) if wanted <= _NAMED else (None,)
        for among in some:
            with closing(self.warehouse.answered(self.target, table, spec, among)) as found:
                yield from found


#: The shard of a row that no shard has bought.
NO_SHARD = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Copier:
    """Copies the answers that a plan reuses."""

    parts: Parts
    folder: RunFolder
    plan: Plan
    scratch: Path

    def run(self) -> None:
        """Copy once, and record how many rows have their copy."""
        if not self.plan.reused or self.folder.read_copied() is not None:
            return
        try:
            rows = self.copy()
        except WarehouseError:
            # Another live attempt may have copied in between, and dropped the staged rows.
            if self.folder.read_copied() is None:
                raise
            return
        self.folder.create_copied(orjson.dumps({"at": self.parts.clock(), "rows": rows}))
        self._tell(rows)

    def copy(self) -> int:
        """Stage the rows and give them their answers. Returns the number of rows that have one."""
        warehouse, target = self.parts.target, self.plan.target
        assert isinstance(warehouse, CopiesAnswers), "the plan was made for a warehouse that does"
        part = Part(run_id=self.folder.run_id, round=0, shard=0)
        self._stage(part)
        copied = warehouse.copy(target, part, self.plan.donors)
        with self.parts.cleaning("staged rows"):
            warehouse.drop_loaded(target.without_answer, [part])
        return copied

    def _stage(self, part: Part) -> None:
        """Stage the rows that get a copy, from the keys file of rows without a request, or inside the warehouse."""
        target = self.plan.target
        if self.plan.in_warehouse:
            return stage_tables(self.parts, target).stage_copies(
                self.plan.nonce, part, self._stamp().values()
            )
        keys = self.scratch / f"{self.plan.nonce}-copied.keys.parquet"
        fetch_unsendable(self.folder, self.plan, keys)
        bare = target.without_answer
        with parquet_reader(keys) as rows, no_rows(target.failure_columns) as failures:
            staged = pa.RecordBatchReader.from_batches(bare.answer_columns, self._staged(rows))
            self.parts.target.load(bare, part, staged, failures)
        return keys.unlink()

    def _staged(self, rows: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        """Turn the rows that get a copy into rows of the target, without the columns that come with the answer."""
        schema = self.plan.target.without_answer.answer_columns
        origin = pa.schema([*self.plan.target.key, *self.plan.target.carried])
        for batch in rows:
            reused = batch.filter(pc.is_valid(batch.column(REUSED_SPEC)))
            count = reused.num_rows
            columns = self._stamp().columns(reused.column(INPUT_HASH)) | {
                "_llm_spec_hash": reused.column(REUSED_SPEC),
                "_llm_input_tokens": int64_array([0] * count),
                "_llm_cached_tokens": int64_array([0] * count),
                "_llm_output_tokens": int64_array([0] * count),
                "_llm_cost_usd": float64_array([0.0] * count),
                "_llm_shared": bool_array([True] * count),
            }
            own = restored(reused, origin)
            columns |= dict(zip(own.schema.names, own.columns, strict=True))
            absent = {column.name: pa.nulls(count, column.type) for column in schema}
            absent |= {name: values for name, values in columns.items() if name != "_llm_route"}
            yield pa.RecordBatch.from_arrays([absent[name] for name in schema.names], schema=schema)

    def _stamp(self) -> Bookkeeping:
        own = self.plan.routes[0]
        return Bookkeeping(
            run_id=self.folder.run_id,
            shard=NO_SHARD,
            spec_hash=own.spec_hash,
            model=own.call.model,
            route=own.name,
            planned_at=self.plan.planned_at,
            processed_at=self.parts.clock(),
            max_attempts=self.plan.limits.max_attempts,
            tries=1,
            raw_excerpt=False,
        )

    def _tell(self, rows: int) -> None:
        self.parts.log(
            f"Reused {rows:,}: {counted(rows, 'row')} {verb(rows, 'has', 'have')} a copy of an answer to the same input,"
            f" in {self.plan.target.table}."
        )
        if lost := self.plan.reused - rows:
            self.parts.warn(
                f"{counted(lost, 'answer')} that {verb(lost, 'was', 'were')} to be copied {verb(lost, 'is', 'are')} gone. The"
                " next run asks for these rows."
            )
