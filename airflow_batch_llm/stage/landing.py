"""Landing one shard: its judged requests, joined to their rows by number, staged in the warehouse.

The keys file lists every row of the shard by its request, so the join is one pass over it. The first row of a
request bears its tokens and cost; the others are marked as sharing it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_batch_llm.core.attempts import Verdict, after_failure, after_rejection
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.stage.gathering import Judged
from airflow_batch_llm.stage.spool import ATTEMPTS, INPUT_HASH, PROBLEM, REQUEST, SHARED
from airflow_batch_llm.warehouses.base import Target

_ROWS_AT_ONCE = 16_384
_SAMPLES, _SAMPLE_CHARS = 3, 40

#: What a row that was never sent has nothing to say about.
_NOT_SENT = (
    ("_llm_raw_excerpt", pa.string()),
    ("_llm_batch_id", pa.string()),
    ("_llm_input_tokens", pa.int64()),
    ("_llm_cached_tokens", pa.int64()),
    ("_llm_output_tokens", pa.int64()),
    ("_llm_cost_usd", pa.float64()),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What stands beside every row of a landed shard."""

    run_id: str
    shard: int
    spec_hash: str
    model: str
    planned_at: float
    processed_at: float
    max_attempts: int
    tries: int  # this is the run's so-many-th try at these rows
    raw_excerpt: bool
    rejected: bool = False

    def columns(self, input_hashes: pa.Array) -> dict[str, pa.Array]:
        """What is the same for all rows of the shard, for as many rows as there are hashes."""
        count = len(input_hashes)
        return {
            "_llm_input_hash": input_hashes,
            "_llm_spec_hash": pa.repeat(self.spec_hash, count),
            "_llm_run_id": pa.repeat(self.run_id, count),
            "_llm_shard": pa.repeat(pa.scalar(self.shard, pa.int64()), count),
            "_llm_planned_at": pa.repeat(_time(self.planned_at), count),
            "_llm_processed_at": pa.repeat(_time(self.processed_at), count),
        }


@dataclass(slots=True)
class Tally:
    """Counts of rows by outcome, and the requests that are worth another try."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    again: list[tuple[int, Outcome]] = field(default_factory=list)
    again_rows: Counter[Outcome] = field(default_factory=Counter)  # rows that wait for these requests
    samples: list[str] = field(default_factory=list)  # keys of some rows without a good answer


class Lander:
    """Turns one shard's keys file and judged requests into the two tables' rows."""

    def __init__(self, target: Target, stamp: Stamp, judged: Sequence[Judged]) -> None:
        self._target = target
        self._stamp = stamp
        self._judged = judged
        self._good = pa.array([one.outcome is Outcome.SUCCEEDED for one in judged], pa.bool_())
        self._answers = self._answer_columns()
        self._money = self._money_columns()
        self._origin = {
            "_llm_model": pa.array([one.model or stamp.model for one in judged], pa.string()),
            "_llm_batch_id": pa.array([one.batch_id for one in judged], pa.string()),
        }

    def write(self, keys: Path, answers: Path, failures: Path) -> Tally:
        """Write the rows of both tables as Parquet; the tally says what became of the rows."""
        tally = Tally()
        with (
            pq.ParquetFile(keys) as rows,
            pq.ParquetWriter(answers, self._target.answer_columns) as good,
            pq.ParquetWriter(failures, self._target.failure_columns) as bad,
        ):
            for batch in rows.iter_batches(_ROWS_AT_ONCE):
                landed = self._good.take(batch.column(REQUEST))
                good.write_batch(self._answer_rows(batch.filter(landed)))
                bad.write_batch(self._failure_rows(batch.filter(pc.invert(landed)), tally))
                tally.outcomes[Outcome.SUCCEEDED] += pc.sum(landed.cast(pa.int64())).as_py() or 0
        return tally

    def _answer_columns(self) -> dict[str, pa.Array]:
        """The typed answer of each request, by ordinal; NULL where there is none."""
        columns = {}
        for position, column in enumerate(self._target.answer):
            values = [one.values[position] if one.values is not None else None for one in self._judged]
            columns[column.name] = _array(values, column.type)
        return columns

    def _money_columns(self) -> dict[str, pa.Array]:
        judged = self._judged
        return {
            "_llm_input_tokens": pa.array([one.usage.input_tokens for one in judged], pa.int64()),
            "_llm_cached_tokens": pa.array([one.usage.cached_tokens for one in judged], pa.int64()),
            "_llm_output_tokens": pa.array([one.usage.output_tokens for one in judged], pa.int64()),
            "_llm_cost_usd": pa.array([one.cost for one in judged], pa.float64()),
        }

    def _answer_rows(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        requests = rows.column(REQUEST)
        columns = {name: rows.column(name) for name in (*self._target.key.names, *self._target.carried.names)}
        columns |= {name: values.take(requests) for name, values in self._answers.items()}
        columns |= self._bookkeeping(rows)
        return _arranged(columns, self._target.answer_columns)

    def _failure_rows(self, rows: pa.RecordBatch, tally: Tally) -> pa.RecordBatch:
        requests: list[int] = rows.column(REQUEST).to_pylist()
        judged = [self._judged[request] for request in requests]
        verdicts = [
            self._verdict(one, attempts)
            for one, attempts in zip(judged, rows.column(ATTEMPTS).to_pylist(), strict=True)
        ]
        tally.outcomes.update(one.outcome for one in judged)
        tally.again += [
            (request, one.outcome)
            for request, one, verdict, shared in zip(
                requests, judged, verdicts, rows.column(SHARED).to_pylist(), strict=True
            )
            if verdict.again and not shared
        ]
        tally.again_rows.update(
            one.outcome for one, verdict in zip(judged, verdicts, strict=True) if verdict.again
        )
        for row in (
            rows.slice(0, max(0, _SAMPLES - len(tally.samples))).select(self._target.key.names).to_pylist()
        ):
            tally.samples.append("/".join(str(value)[:_SAMPLE_CHARS] for value in row.values()))
        excerpts = [one.excerpt if self._stamp.raw_excerpt else None for one in judged]
        columns = {name: rows.column(name) for name in self._target.key.names}
        columns |= {
            "_llm_outcome": pa.array([str(one.outcome) for one in judged], pa.string()),
            "_llm_error_code": pa.array([one.code for one in judged], pa.string()),
            "_llm_error_message": pa.array([one.message for one in judged], pa.string()),
            "_llm_raw_excerpt": pa.array(excerpts, pa.string()),
            "_llm_attempts": pa.array([verdict.attempts for verdict in verdicts], pa.int64()),
            "_llm_dead": pa.array([verdict.dead for verdict in verdicts], pa.bool_()),
        }
        return _arranged(columns | self._bookkeeping(rows), self._target.failure_columns)

    def _verdict(self, one: Judged, attempts: int) -> Verdict:
        if self._stamp.rejected:
            return after_rejection(attempts)
        return after_failure(
            one.outcome,
            retryable=one.retryable,
            attempts=attempts,
            tries=self._stamp.tries,
            most=self._stamp.max_attempts,
        )

    def _bookkeeping(self, rows: pa.RecordBatch) -> dict[str, pa.Array]:
        requests, shared = rows.column(REQUEST), rows.column(SHARED)
        columns = self._stamp.columns(rows.column(INPUT_HASH)) | {"_llm_shared": shared}
        columns |= {name: values.take(requests) for name, values in self._origin.items()}
        for name, values in self._money.items():
            columns[name] = pc.if_else(shared, pa.scalar(0, values.type), values.take(requests))
        return columns


def unsendable_failures(rows: pa.RecordBatchReader, target: Target, stamp: Stamp) -> pa.RecordBatchReader:
    """The failures of rows that were never sent: their problem reads `<code>: <message>`. They cost nothing."""

    def failures() -> Iterator[pa.RecordBatch]:
        for batch in rows:
            count = batch.num_rows
            problems = [str(problem).partition(": ") for problem in batch.column(PROBLEM).to_pylist()]
            columns = stamp.columns(batch.column(INPUT_HASH)) | {
                "_llm_outcome": pa.repeat(str(Outcome.ERRORED), count),
                "_llm_error_code": pa.array([code for code, _, _ in problems], pa.string()),
                "_llm_error_message": pa.array([message for _, _, message in problems], pa.string()),
                "_llm_attempts": batch.column(ATTEMPTS),
                "_llm_dead": pa.repeat(False, count),
                "_llm_model": pa.repeat(stamp.model, count),
                "_llm_shared": pa.repeat(False, count),
            }
            columns |= {name: batch.column(name) for name in target.key.names}
            absent = {name: pa.nulls(count, kind) for name, kind in _NOT_SENT}
            yield _arranged(absent | columns, target.failure_columns)

    return pa.RecordBatchReader.from_batches(target.failure_columns, failures())


def no_rows(schema: pa.Schema) -> pa.RecordBatchReader:
    """A stream that is at its end."""
    return pa.RecordBatchReader.from_batches(schema, iter(()))


def parquet_reader(path: Path) -> pa.RecordBatchReader:
    """A file's rows as a stream."""
    file = pq.ParquetFile(path)

    def stream() -> Iterator[pa.RecordBatch]:
        with file:
            yield from file.iter_batches(_ROWS_AT_ONCE)

    return pa.RecordBatchReader.from_batches(file.schema_arrow, stream())


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, split at the byte `\\n` only, without it; empty ones are left out."""
    with path.open("rb") as file:
        yield from (line for raw in file if (line := raw.rstrip(b"\n")))


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    return pa.array(values, kind)


def _arranged(columns: dict[str, pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _time(seconds: float) -> pa.Scalar:
    return pa.scalar(datetime.fromtimestamp(seconds, UTC), pa.timestamp("us", tz="UTC"))
