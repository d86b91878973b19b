"""Land one shard: join its judged requests to their rows by number, and load them into the warehouse.

The keys file lists every row of the shard by its request, so the join is one pass over it. The first row of a
request holds its tokens and cost; the others are marked as sharing it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_batch_llm.core.drift import label_of
from airflow_batch_llm.core.escalation import Course
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.core.selection import Consequence, after_failure, after_rejection
from airflow_batch_llm.providers.failures import detail, word
from airflow_batch_llm.stage.land.gathering import ATTACHMENT_REFUSED, MISSING_ITEM, Judgements, RowFailure
from airflow_batch_llm.stage.plan.carried import restored
from airflow_batch_llm.stage.plan.spool import ATTEMPTS, INPUT_HASH, PROBLEM, REQUEST, SHARED
from airflow_batch_llm.stage.records.standings import Again
from airflow_batch_llm.warehouses.arrow import (
    answer_array,
    bool_array,
    float64_array,
    int64_array,
    int64_scalar,
    parquet_batches,
    string_array,
    string_scalar,
    timestamp_scalar,
)
from airflow_batch_llm.warehouses.base import PACKED_COLUMN, REUSED_COLUMN, Target

#: The most keys of failed rows in a report, and the most characters of each.
SAMPLES, SAMPLE_CHARS, SAMPLE_CODES = 3, 40, 10

#: The columns for which a row that was never sent has no value.
_NOT_SENT = (
    ("_llm_raw_excerpt", pa.string()),
    ("_llm_batch_id", pa.string()),
    ("_llm_input_tokens", pa.int64()),
    ("_llm_cached_tokens", pa.int64()),
    ("_llm_output_tokens", pa.int64()),
    ("_llm_cost_usd", pa.float64()),
    (PACKED_COLUMN.name, pa.int64()),
)

#: Outcomes for which another row of the same request may be the reason.
_AT_FAULT = frozenset({Outcome.INVALID, Outcome.TRUNCATED, Outcome.REFUSED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookkeeping:
    """The values that are the same for every row of a landed shard."""

    run_id: str
    shard: int
    spec_hash: str
    model: str
    route: str
    planned_at: float
    processed_at: float
    max_attempts: int
    tries: int  # this is the run's so-many-th try at these rows
    raw_excerpt: bool
    rejected: bool = False
    course: Course = field(default_factory=Course)
    answered: bool = False
    """The rows have good answers from another route already, which stay unless these are better."""
    rows_per_request: int = 1
    """The most rows of one of the shard's requests. Default: 1, they are not packed."""
    labelled: tuple[str, ...] = ()
    """The answer columns whose values are counted. Default: none."""

    def values(self) -> dict[str, Any]:
        """Return the columns whose value is the same for all rows of the shard."""
        return {name: scalar.as_py() for name, scalar in self._scalars().items()}

    def columns(self, input_hashes: pa.Array) -> dict[str, pa.Array]:
        """Return the columns whose value is the same for all rows of the shard, repeated for each hash."""
        count = len(input_hashes)
        repeated = {name: pa.repeat(scalar, count) for name, scalar in self._scalars().items()}
        return {"_llm_input_hash": input_hashes, **repeated}

    def _scalars(self) -> dict[str, pa.Scalar]:
        return {
            "_llm_spec_hash": string_scalar(self.spec_hash),
            "_llm_run_id": string_scalar(self.run_id),
            "_llm_route": string_scalar(self.route),
            "_llm_shard": int64_scalar(self.shard),
            "_llm_planned_at": timestamp_scalar(self.planned_at),
            "_llm_processed_at": timestamp_scalar(self.processed_at),
        }


@dataclass(slots=True)
class Tally:
    """Counts of rows by outcome, and the requests that are worth another try."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    again: list[Again] = field(default_factory=list)
    again_rows: Counter[Outcome] = field(default_factory=Counter)  # rows that wait for these requests
    codes: Counter[str] = field(default_factory=Counter)  # of rows without a good answer
    again_codes: Counter[str] = field(default_factory=Counter)  # of those that wait for these requests
    words: dict[str, str] = field(default_factory=dict)  # what a vendor said about a row, by code
    samples: list[str] = field(default_factory=list)  # keys of some rows without a good answer
    failed_keys: dict[str, list[str]] = field(default_factory=dict)
    """Keys of rows that are not asked again, by code."""
    again_keys: dict[str, list[str]] = field(default_factory=dict)
    """Keys of rows that wait for another try, by code."""
    labels: dict[str, Counter[str]] = field(default_factory=dict)  # good answers by label, by column
    sure: Report = field(default_factory=Report)
    """The tokens and dollars of rows that the warehouse has landed alone."""


class RowWriter:
    """Turns one shard's keys file and judged requests into the two tables' rows."""

    def __init__(self, target: Target, stamp: Bookkeeping, judged: Judgements) -> None:
        self._target = target
        self._stamp = stamp
        self._judged = judged
        self._good = bool_array(outcome is Outcome.SUCCEEDED for outcome in judged.outcomes)
        self._answers = self._answer_columns()
        self._money = self._money_columns()
        self._onward = self._onward_routes()
        self._packed = int64_array(judged.packed or [1] * len(judged))
        self._origin = {
            "_llm_model": string_array([model or stamp.model for model in judged.models]),
            "_llm_batch_id": string_array(judged.batch_ids),
        }

    def write(self, keys: Path, answers: Path, failures: Path) -> Tally:
        """Write the rows of both tables. Returns a tally of the rows."""
        tally = Tally()
        with (
            pq.ParquetFile(keys) as rows,
            _written(answers, self._target.answer_columns) as good,
            _written(failures, self._target.failure_columns) as bad,
        ):
            for batch in parquet_batches(rows):
                landed = self._good.take(batch.column(REQUEST))
                answered = batch.filter(landed)
                good.write_batch(self._answer_rows(answered))
                self._count_labels(answered, tally)
                tally.outcomes[Outcome.SUCCEEDED] += answered.num_rows
                self._send_on(answered, tally)
                failed = self._failure_rows(batch.filter(pc.invert(landed)), tally)
                bad.write_batch(failed.slice(0, 0) if self._stamp.answered else failed)
        return tally

    def _count_labels(self, rows: pa.RecordBatch, tally: Tally) -> None:
        for name in self._stamp.labelled:
            if name in self._answers and rows.num_rows:
                values = pc.value_counts(self._answers[name].take(rows.column(REQUEST))).to_pylist()
                counts = {label_of(one["values"]): one["counts"] for one in values}
                tally.labels.setdefault(name, Counter()).update(counts)

    def _send_on(self, rows: pa.RecordBatch, tally: Tally) -> None:
        """Note the rows that take another route because of their good answer."""
        if not self._onward:
            return
        requests, shared = rows.column(REQUEST).to_pylist(), rows.column(SHARED).to_pylist()
        for request, repeats in zip(requests, shared, strict=True):
            if (to := self._onward.get(request)) is not None:
                tally.again_rows[Outcome.SUCCEEDED] += 1
                if not repeats:
                    tally.again.append(Again(request, Outcome.SUCCEEDED, to=to))

    def _onward_routes(self) -> dict[int, str]:
        """Return the next route of each request that takes one because of its good answer."""
        course = self._stamp.course
        places = {column.name: place for place, column in enumerate(self._target.answer)}
        wanted = [(name, places[name]) for name in course.looks_at if name in places]
        if not wanted:
            return {}
        onward = {}
        for request, (outcome, values) in enumerate(
            zip(self._judged.outcomes, self._judged.values, strict=True)
        ):
            if outcome is Outcome.SUCCEEDED and values is not None:
                seen = {name: values[place] for name, place in wanted}
                if (to := course.after_answer(seen)) is not None:
                    onward[request] = to
        return onward

    def _answer_columns(self) -> dict[str, pa.Array]:
        """Return the typed answer of each request, by ordinal; NULL where there is none."""
        columns = {}
        for position, column in enumerate(self._target.answer):
            values = [one[position] if one is not None else None for one in self._judged.values]
            columns[column.name] = answer_array(values, column.type)
        return columns

    def _money_columns(self) -> dict[str, pa.Array]:
        usages = list(self._judged.usages())
        return {
            "_llm_input_tokens": int64_array(usage.input_tokens for usage in usages),
            "_llm_cached_tokens": int64_array(usage.cached_tokens for usage in usages),
            "_llm_output_tokens": int64_array(usage.output_tokens for usage in usages),
            "_llm_cost_usd": float64_array([bill.cost for bill in self._judged.bills]),
        }

    def _answer_rows(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        requests = rows.column(REQUEST)
        columns = _named(restored(rows, pa.schema([*self._target.key, *self._target.carried])))
        columns |= {name: values.take(requests) for name, values in self._answers.items()}
        columns |= self._bookkeeping(rows)
        columns[REUSED_COLUMN.name] = pa.nulls(rows.num_rows, REUSED_COLUMN.type)
        return _arranged(columns, self._target.answer_columns)

    def _failure_rows(self, rows: pa.RecordBatch, tally: Tally) -> pa.RecordBatch:
        requests: list[int] = rows.column(REQUEST).to_pylist()
        outcomes = [self._judged.outcomes[request] for request in requests]
        failures = [self._judged.failure(request) for request in requests]
        verdicts = [
            self._verdict(outcome, failure, attempts)
            for outcome, failure, attempts in zip(
                outcomes, failures, rows.column(ATTEMPTS).to_pylist(), strict=True
            )
        ]
        onward = [
            None if verdict.again else self._stamp.course.after_failure(outcome)
            for outcome, verdict in zip(outcomes, verdicts, strict=True)
        ]
        verdicts = [
            verdict if to is None else replace(verdict, again=True, dead=False)
            for verdict, to in zip(verdicts, onward, strict=True)
        ]
        self._count(rows, outcomes, failures, verdicts, onward, tally)
        columns = _named(restored(rows, self._target.failure_origin))
        columns |= {
            "_llm_outcome": string_array([str(outcome) for outcome in outcomes]),
            "_llm_error_code": string_array([failure.code for failure in failures]),
            "_llm_error_message": string_array([failure.message for failure in failures]),
            "_llm_raw_excerpt": string_array(
                [failure.excerpt if self._stamp.raw_excerpt else None for failure in failures]
            ),
            "_llm_attempts": int64_array(verdict.attempts for verdict in verdicts),
            "_llm_dead": bool_array(verdict.dead for verdict in verdicts),
        }
        return _arranged(columns | self._bookkeeping(rows), self._target.failure_columns)

    def _count(
        self,
        rows: pa.RecordBatch,
        outcomes: list[Outcome],
        failures: list[RowFailure],
        verdicts: list[Consequence],
        onward: list[str | None],
        tally: Tally,
    ) -> None:
        """Count these rows without a good answer, and note which are asked again."""
        answered = self._stamp.answered
        requests, shared = rows.column(REQUEST).to_pylist(), rows.column(SHARED).to_pylist()
        codes: list[str | None] = []
        for request, repeats, outcome, failure, verdict, to in zip(
            requests, shared, outcomes, failures, verdicts, onward, strict=True
        ):
            counted = Outcome.SUCCEEDED if answered else outcome
            tally.outcomes[counted] += 1
            code = None if answered else _count_code(outcome, failure, tally, again=verdict.again)
            codes.append(code)
            if verdict.again:
                tally.again_rows[counted] += 1
                if not repeats:
                    most = self._next_rows(outcome, failure)
                    tally.again.append(Again(request, outcome, code, to, most))
        if answered:
            return
        wanted = rows.slice(0, max(0, SAMPLES - len(tally.samples)))
        tally.samples += sample_keys(restored(wanted, self._target.key))
        for kept, again in ((tally.failed_keys, False), (tally.again_keys, True)):
            of_code = [
                code if verdict.again is again else None
                for code, verdict in zip(codes, verdicts, strict=True)
            ]
            self._keep_keys(rows, of_code, kept)

    def _keep_keys(
        self, rows: pa.RecordBatch, codes: Sequence[str | None], kept: dict[str, list[str]]
    ) -> None:
        """Keep the keys of a few rows of each code, for people."""
        for code in filter(None, dict.fromkeys(codes)):
            if code not in kept and len(kept) == SAMPLE_CODES:
                continue
            keys = kept.setdefault(code, [])
            if len(keys) < SAMPLES:
                wanted = rows.filter(bool_array(one == code for one in codes)).slice(0, SAMPLES - len(keys))
                keys += sample_keys(restored(wanted, self._target.key))

    def _verdict(self, outcome: Outcome, failure: RowFailure, attempts: int) -> Consequence:
        if self._stamp.rejected and failure.code != ATTACHMENT_REFUSED:
            return after_rejection(attempts)
        verdict = after_failure(
            outcome,
            retryable=failure.retryable,
            attempts=attempts,
            tries=self._stamp.tries,
            most=self._stamp.max_attempts,
        )
        if self._next_rows(outcome, failure) is None or attempts >= self._stamp.max_attempts:
            return verdict
        # The other rows of its request may be the cause, so the row is first asked alone.
        return replace(verdict, dead=False, again=self._stamp.tries < self._stamp.max_attempts)

    def _next_rows(self, outcome: Outcome, failure: RowFailure) -> int | None:
        """Return the most rows of the request that asks an item again. None means as many as before."""
        rows = self._stamp.rows_per_request
        if rows == 1:
            return None
        if outcome is Outcome.TRUNCATED and self._stamp.tries + 1 < self._stamp.max_attempts:
            return max(1, rows // 2)
        is_at_fault = outcome in _AT_FAULT or failure.code == MISSING_ITEM
        return 1 if is_at_fault or (outcome is Outcome.ERRORED and not failure.retryable) else None

    def _bookkeeping(self, rows: pa.RecordBatch) -> dict[str, pa.Array]:
        requests, shared = rows.column(REQUEST), rows.column(SHARED)
        columns = self._stamp.columns(rows.column(INPUT_HASH)) | {"_llm_shared": shared}
        columns |= {name: values.take(requests) for name, values in self._origin.items()}
        columns[PACKED_COLUMN.name] = self._packed.take(requests)
        for name, values in self._money.items():
            columns[name] = pc.if_else(shared, int64_scalar(0).cast(values.type), values.take(requests))
        return columns


def _count_code(outcome: Outcome, failure: RowFailure, tally: Tally, *, again: bool) -> str | None:
    """Count a row by its error code, and keep the vendor's words of the first one. Returns the code."""
    code = word(failure.code)
    if not code:
        return None
    tally.codes[code] += 1
    if again:
        tally.again_codes[code] += 1
    if outcome is Outcome.ERRORED and code not in tally.words and len(tally.words) < SAMPLES:
        tally.words[code] = detail(failure.message)
    return code


def sample_keys(keys: pa.RecordBatch) -> list[str]:
    """Return the keys for people, each cut off."""
    return ["/".join(str(value)[:SAMPLE_CHARS] for value in row.values()) for row in keys.to_pylist()]


def unsendable_failures(
    rows: pa.RecordBatchReader, target: Target, stamp: Bookkeeping
) -> pa.RecordBatchReader:
    """Return the failures of rows that were never sent: their problem reads `<code>: <message>`. They cost nothing."""

    def failures() -> Iterator[pa.RecordBatch]:
        for read in rows:  # those without a problem get a copy of an answer
            batch = read.filter(pc.is_valid(read.column(PROBLEM)))
            count = batch.num_rows
            problems = [str(problem).partition(": ") for problem in batch.column(PROBLEM).to_pylist()]
            columns = stamp.columns(batch.column(INPUT_HASH)) | {
                "_llm_outcome": pa.repeat(string_scalar(Outcome.ERRORED), count),
                "_llm_error_code": string_array([code for code, _, _ in problems]),
                "_llm_error_message": string_array([message for _, _, message in problems]),
                "_llm_attempts": batch.column(ATTEMPTS),
                "_llm_dead": bool_array([False] * count),
                "_llm_model": pa.repeat(string_scalar(stamp.model), count),
                "_llm_shared": bool_array([False] * count),
            }
            columns |= _named(restored(batch, target.failure_origin))
            absent = {name: pa.nulls(count, kind) for name, kind in _NOT_SENT}
            yield _arranged(absent | columns, target.failure_columns)

    return pa.RecordBatchReader.from_batches(target.failure_columns, failures())


def _named(rows: pa.RecordBatch) -> dict[str, pa.Array]:
    return dict(zip(rows.schema.names, rows.columns, strict=True))


def no_rows(schema: pa.Schema) -> pa.RecordBatchReader:
    """Return a stream that is at its end."""
    return pa.RecordBatchReader.from_batches(schema, iter(()))


def parquet_reader(path: Path) -> pa.RecordBatchReader:
    """Return a file's rows as a stream."""
    file = pq.ParquetFile(path)

    def stream() -> Iterator[pa.RecordBatch]:
        with file:
            yield from parquet_batches(file)

    return pa.RecordBatchReader.from_batches(file.schema_arrow, stream())


@contextmanager
def _written(path: Path, schema: pa.Schema) -> Iterator[Any]:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        yield writer


@contextmanager
def landed_rows(path: Path) -> Iterator[pa.RecordBatchReader]:
    """Stream the rows that `RowWriter.write` wrote."""
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as reader:
        yield reader


def _arranged(columns: dict[str, pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
