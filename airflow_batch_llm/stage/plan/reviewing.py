"""Merge people's answers from the review table, before a run plans its rows.

Each step may be repeated. A killed worker leaves the rows in the review table until the target has their answers, so the
next one merges them again, into the same rows by key.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import chain
from typing import Any

import pyarrow as pa

from airflow_batch_llm.core.answer import Answer, HumanAnswerParser, Invalid, storable
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.stage.land.landing import no_rows, sample_keys
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.carried import carried
from airflow_batch_llm.stage.plan.reading import let_go, required_columns
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.warehouses.arrow import int64_array, typed_array
from airflow_batch_llm.warehouses.base import Part, Target
from airflow_batch_llm.warehouses.side_tables import keeps_reviews

#: The prefix of the model of a person's answer, before the person's name.
HUMAN = "human:"

#: The most rows that the log names because their answers do not fit, and the characters of a reviewer's name.
_NAMED, _NAME_CHARS = 20, 200

#: The cost of a person's answer, and the columns for which it has no value.
_FREE = {
    "_llm_shard": 0,
    "_llm_input_tokens": 0,
    "_llm_cached_tokens": 0,
    "_llm_output_tokens": 0,
    "_llm_cost_usd": 0.0,
    "_llm_shared": False,
}


@dataclass(slots=True, kw_only=True)
class ReviewMerge:
    """One attempt to merge the answers of people into the target of a run."""

    parts: Parts
    folder: RunFolder
    target: Target
    output_type: OutputType
    _merged: set[str] = field(default_factory=set, init=False)  # marks of the keys
    _refused: list[str] = field(default_factory=list, init=False)
    _refused_rows: int = field(default=0, init=False)

    def run(self) -> None:
        """Merge the answers that fit. The others stay in the review table, and the log names their keys."""
        warehouse = keeps_reviews(self.parts.target)
        part = Part(run_id=f"{self.folder.run_id}/{secrets.token_hex(6)}", round=0, shard=0)
        required = required_columns(self.parts.target, self.target)
        with closing(warehouse.read_reviews(self.target)) as rows:
            answers = (batch for batch in self._answers(rows, required) if batch.num_rows)
            first = next(answers, None)
            if first is not None:
                self._load(part, chain((first,), answers))
        let_go(self.parts)
        if first is not None:
            self.folder.add_reviewed(sorted(self._merged))
            self.parts.target.publish(self.target, [part])
            with self.parts.cleaning("staged rows"):
                self.parts.target.drop_loaded(self.target, [part])
        warehouse.refresh_reviews(self.target)
        self._tell()

    def _load(self, part: Part, answers: Iterator[pa.RecordBatch]) -> None:
        schema = self.target.answer_columns
        with (
            pa.RecordBatchReader.from_batches(schema, answers) as good,
            no_rows(self.target.failure_columns) as bad,
        ):
            self.parts.target.load(self.target, part, good, bad)

    def _answers(self, rows: pa.RecordBatchReader, required: frozenset[str]) -> Iterator[pa.RecordBatch]:
        """Turn rows of the review table into rows of the target, batch by batch."""
        parser = HumanAnswerParser.of(self.output_type)
        for batch in rows:
            source = self._from_source(batch)
            given = batch.select(self.target.answer.names).to_pylist()
            reviewers = [storable(str(name)).strip() for name in batch.column("reviewed_by").to_pylist()]
            verdicts = [parser.parse(tuple(row.values())) for row in given]
            good = []
            for at, verdict in enumerate(verdicts):
                why = _complaint(verdict, reviewers[at], self._empty(batch.slice(at, 1), required))
                if why:
                    self._refuse(source.slice(at, 1), why)
                else:
                    good.append(at)
            yield self._landed(batch, source, [(at, verdicts[at], reviewers[at]) for at in good])

    def _empty(self, row: pa.RecordBatch, required: frozenset[str]) -> list[str]:
        """Return the columns that have no value and must have one."""
        names = ("_llm_input_hash", "_llm_spec_hash", "_llm_planned_at", *sorted(required))
        return [name for name in names if row.column(name).null_count]

    def _from_source(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the key and carried columns in the types of the run."""
        schema = pa.schema([*self.target.key, *self.target.carried])
        columns = [carried(batch.column(column.name), column.type) for column in schema]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _landed(
        self, batch: pa.RecordBatch, source: pa.RecordBatch, good: Sequence[tuple[int, Any, str]]
    ) -> pa.RecordBatch:
        places = int64_array(at for at, _, _ in good)
        source = source.take(places)
        self._merged.update(map(self._mark, source.select(self.target.key.names).to_pylist()))
        answer = [
            typed_array([verdict.values[at] for _, verdict, _ in good], column)
            for at, column in enumerate(self.target.answer)
        ]
        told = batch.take(places).to_pylist()
        now = datetime.fromtimestamp(self.parts.clock(), UTC)
        kept = [
            {
                **_FREE,
                "_llm_input_hash": row["_llm_input_hash"],
                "_llm_spec_hash": row["_llm_spec_hash"],
                "_llm_model": f"{HUMAN}{reviewer[:_NAME_CHARS]}",
                "_llm_run_id": self.folder.run_id,
                "_llm_planned_at": row["_llm_planned_at"],
                "_llm_processed_at": _instant(row["reviewed_at"]) or now,
            }
            for row, (_, _, reviewer) in zip(told, good, strict=True)
        ]
        columns = self.target.answer_columns
        bookkeeping = [
            typed_array([row.get(column.name) for row in kept], column)
            for column in list(columns)[source.num_columns + len(answer) :]
        ]
        return pa.RecordBatch.from_arrays([*source.columns, *answer, *bookkeeping], schema=columns)

    def _mark(self, key: dict[str, object]) -> str:
        """Return a short mark of a key that means nothing outside of this run."""
        return blake2b(repr((self.folder.path, *key.values())).encode(), digest_size=8).hexdigest()

    def _refuse(self, row: pa.RecordBatch, why: str) -> None:
        self._refused_rows += 1
        if len(self._refused) < _NAMED:
            (key,) = sample_keys(row.select(self.target.key.names))
            self._refused.append(f"{key} ({why})")

    def _tell(self) -> None:
        if self._merged:
            rows = len(self._merged)
            self.parts.log(
                f"Reviewed {rows:,}: {counted(rows, 'answer')} of people {verb(rows, 'is', 'are')} merged into"
                f" {self.target.table}."
            )
        if self._refused:
            rows = self._refused_rows
            self.parts.warn(
                f"{counted(rows, 'reviewed row')} {verb(rows, 'does', 'do')} not fit the output type and"
                f" {verb(rows, 'stays', 'stay')} in {self.target.review}. Their keys: {'; '.join(self._refused)}."
            )


def _complaint(verdict: Answer | Invalid, reviewer: str, empty: Sequence[str]) -> str:
    """Say why a row cannot be merged, without a value of it. Returns an empty text if it can."""
    if not reviewer:
        return "reviewed_by is empty"
    if isinstance(verdict, Invalid):
        return verdict.message.rstrip(".")
    return f"{', '.join(empty)} must not be NULL" if empty else ""


def _instant(given: datetime | str | None) -> datetime | None:
    """Return the instant of a review. SQLite gives it as text, which may be anything. One without a zone is in UTC."""
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given)
        except ValueError:
            return None
    return given.replace(tzinfo=UTC) if given is not None and given.tzinfo is None else given
