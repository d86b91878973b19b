"""Collect the batches of a plan whose rows are in the warehouse: its statements land the answers that are certainly good.

The worker judges the other answers as usual, and stages their rows in a separate part.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.core.caching import CacheTotals
from airflow_batch_llm.core.drift import label_of
from airflow_batch_llm.core.journal import Standing
from airflow_batch_llm.core.model import Outcome, Way
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.printing import share
from airflow_batch_llm.core.report import Report, Spent
from airflow_batch_llm.errors import ResultsGone
from airflow_batch_llm.providers.base import AsksTables
from airflow_batch_llm.stage.land.collecting import Collector, Expected, Incomplete
from airflow_batch_llm.stage.land.gathering import ReadResults
from airflow_batch_llm.stage.land.landing import Tally
from airflow_batch_llm.stage.parts import planned_tables, stage_tables
from airflow_batch_llm.stage.plan.carried import stored_rows, stored_schema
from airflow_batch_llm.stage.plan.spool import keys_schema
from airflow_batch_llm.stage.records.plan import PlannedShard
from airflow_batch_llm.warehouses.base import Part
from airflow_batch_llm.warehouses.stages import Judged, Judging, StageTables


@dataclass(frozen=True, kw_only=True)
class WarehouseCollector(Collector):
    """Collects the shards of a plan whose rows are in the warehouse. Answers are kept in the vendor's table."""

    @cached_property
    def _tables(self) -> StageTables:
        return stage_tables(self.parts, self.plan.target)

    @property
    def _provider(self) -> AsksTables:
        assert isinstance(self.parts.provider, AsksTables), "the plan was made for a provider that does"
        return self.parts.provider

    def keep_results(self, batch_id: str, expected: Expected | None = None) -> int:
        """Note the table of a batch's answers. Those of a stray come into the run folder."""
        if expected is None:
            return super().keep_results(batch_id)
        table = self._provider.answers_table(batch_id) or ""
        seen = self._tables.count_answers(table, expected.mark.decode()) if table else 0
        if seen is None and expected.lines:
            raise ResultsGone(f"The table {table} is gone.")
        if (seen or 0) < expected.lines:
            raise Incomplete(f"{share(seen or 0, expected.lines, 'result')} came.")
        if seen:
            self._tables.keep_answers(table)
        self.folder.note_answers(batch_id, table if seen else "")
        return seen or 0

    def load(self, shard: PlannedShard, standing: Standing) -> tuple[ReadResults, Tally]:
        """Have the warehouse stage the rows with good answers, and stage the others from here."""
        judging = self._judging(shard, standing)
        tables = planned_tables(self.parts, self.plan.target, self.plan.nonce, self.folder.path)
        judged = tables.judge_answers(judging)
        keys = self._write_unsure(judging)
        gathered, tally = self._stage_rows(shard, standing, keys, self.part(-shard.number))
        tally.outcomes[Outcome.SUCCEEDED] += judged.rows
        for name, values in judged.labels.items():
            counts = Counter({label_of(value): count for value, count in values.items()})
            tally.labels.setdefault(name, Counter()).update(counts)
        tally.sure = _report(judged)
        return gathered, tally

    def parts_of(self, number: int) -> list[Part]:
        """Return the two parts in which a shard's rows are staged: the warehouse's and the worker's."""
        return [self.part(number), self.part(-number)] if number else [self.part(0)]

    def drop_loaded(self) -> None:
        """Drop the staged rows, and the plan's own tables."""
        super().drop_loaded()
        self._tables.drop_plan(self.plan.nonce, [self.part(shard.number) for shard in self.plan.shards])

    def _fetch_ahead(self, shard: PlannedShard) -> None:
        """Fetch nothing: the rows are in the warehouse."""

    def _answers(self, shard: PlannedShard, standing: Standing) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Yield the answers of which the warehouse is not sure, then the lines of any other batch."""
        if standing.ended is None:
            return
        with closing(self._tables.unsure_answers(self._judging(shard, standing))) as answers:
            rows = (row for batch in answers for row in batch.to_pylist())
            yield standing.ended.batch_id, map(self._provider.answer_line, rows)
        for batch_id in standing.spare:
            if (lines := self._kept_lines(batch_id)) is not None:
                yield batch_id, lines

    def _write_unsure(self, judging: Judging) -> Path:
        """Write the rows whose answers the worker judges as a keys file."""
        target = self.plan.target
        origin = pa.schema([*target.key, *target.carried])
        schema = keys_schema(stored_schema(origin))
        path = self.scratch / f"{self.plan.nonce}-{judging.part.shard:04d}.unsure.parquet"
        with closing(self._tables.unsure_rows(judging)) as rows, pq.ParquetWriter(path, schema) as writer:
            for batch in rows:
                writer.write_batch(stored_rows(batch, origin, schema))
        return path

    def _judging(self, shard: PlannedShard, standing: Standing) -> Judging:
        route = self.plan.route(shard)
        stamp = self._stamp(shard, standing)
        batch_id = "" if standing.ended is None else standing.ended.batch_id
        table = self.folder.read_answers(batch_id) if batch_id else ""
        if table is None:
            raise ResultsGone(
                f"The note of where the answers of batch {batch_id} are is gone from {self.folder.path}."
            )
        prices = PriceList.of(
            self.plan.provider, route.call.model, self.plan.limits.prices, at=self.plan.planned_at
        )
        return Judging(
            nonce=self.plan.nonce,
            part=self.part(shard.number),
            answers=table,
            form=self._provider.result_form(route.call),
            output_type=OutputType.from_json(self.plan.output_type),
            tariffs=prices.by(Way.BATCH).tariffs,
            list_tariffs=prices.by(Way.NOW).tariffs,
            stamp={**stamp.values(), "_llm_batch_id": batch_id, "_llm_model": stamp.model},
            labelled=self._labelled,
            trusted=not standing.spare,
        )


def _report(judged: Judged) -> Report:
    """Return the tokens and dollars of the answers that the warehouse has landed alone."""
    return Report(
        usage=judged.usage,
        output_squares=judged.output_squares,
        spent=Spent(cost=judged.cost, list_cost=judged.list_cost, unpriced=judged.unpriced),
        cache=CacheTotals(answers=judged.cache_answers, hits=judged.cache_hits, won=judged.cache_won),
    )
