"""Collect ended batches: check and keep their raw lines, then judge, join and stage them.

Each step leaves a record and may be repeated. With the raw lines kept, landing again needs no provider.
"""

import math
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import orjson

from airflow_batch_llm.core.drift import closed_columns
from airflow_batch_llm.core.escalation import Course, batches_until
from airflow_batch_llm.core.journal import Entry, RecordKind, Standing, Wait
from airflow_batch_llm.core.model import BatchStatus, Outcome, Usage
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.packing import Layout, Sample, sampled
from airflow_batch_llm.core.printing import counted, share
from airflow_batch_llm.core.report import Durations, Report, RouteTotals, Spent
from airflow_batch_llm.errors import BatchLLMError, ResultsGone, StoreError, Unavailable
from airflow_batch_llm.providers.incoming import joined_lines, split_lines
from airflow_batch_llm.stage.land.gathering import Judgements, ReadResults, ResultReader, RowFailure
from airflow_batch_llm.stage.land.landing import (
    Bookkeeping,
    RowWriter,
    Tally,
    landed_rows,
    no_rows,
    parquet_reader,
    unsendable_failures,
)
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.shard_files import fetch_keys, fetch_unsendable, left_out_of, read_layout
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedShard
from airflow_batch_llm.stage.records.standings import RunMemory, ShardResult
from airflow_batch_llm.store import ahead
from airflow_batch_llm.warehouses.base import Part


class Incomplete(BatchLLMError):
    """The fetched lines are not all results of the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The results that a batch must have."""

    lines: int
    """The number of lines, at least."""
    mark: bytes
    """The prefix of the batch's custom_ids. A line without it does not belong to the batch."""

    @classmethod
    def of(cls, status: BatchStatus, *, token: str, requests: int) -> "Expected":
        """Return the expected results: as many as the vendor counts. If it does not count, all, or none of a stopped batch."""
        stopped = status.unmentioned is not Outcome.MISSING  # such a batch leaves rows out
        counted = status.finished if status.finished is not None else (0 if stopped else requests)
        return cls(lines=min(counted, requests), mark=f"{token}-".encode())


@dataclass(slots=True)
class Lines:
    """Counts result lines as they pass. Raises `Incomplete` after the last one if too few came, or none is of the batch."""

    lines: Iterable[bytes]
    expected: Expected | None
    count: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[bytes]:
        marked = 0
        mark = self.expected.mark if self.expected is not None else b""
        for line in self.lines:
            self.count += not line.isspace() and bool(line)
            marked += mark in line
            yield line
        if self.expected is None:
            return
        if self.expected.lines and not marked:
            raise Incomplete(f"none of {counted(self.count, 'line')} is a result of the batch.")
        if self.count < self.expected.lines:
            raise Incomplete(f"{share(self.count, self.expected.lines, 'result')} came.")


#: Seconds for which incomplete results are fetched again, before a row counts as missing.
RESULTS_PATIENCE_SECONDS = 600.0
_FETCH_AGAIN_SECONDS = 60.0
_BLOCK = 1 << 20

#: Shards whose rows are fetched, and shards whose records are written, while another one is staged.
_AHEAD, _RECORDED_AT_ONCE = 8, 16

#: Seconds after which a batch that had no quota is sent again.
_LATER_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Collector:
    """Collects the shards of one plan."""

    parts: Parts
    folder: RunFolder
    memory: RunMemory
    plan: Plan
    scratch: Path
    deadline: float = math.inf
    _fetched: dict[str, Path] = field(default_factory=dict)
    """Files of results on this worker's disk, by batch."""

    @cached_property
    def _gatherer(self) -> Callable[[int], ResultReader]:
        def of(route: int) -> ResultReader:
            return ResultReader.of(self.parts.provider, self.plan, self.plan.routes[route])

        return lru_cache(None)(of)

    @cached_property
    def _labelled(self) -> tuple[str, ...]:
        return closed_columns(OutputType.from_json(self.plan.output_type))

    def note_end(self, shard: PlannedShard, standing: Standing, status: BatchStatus) -> Wait | None:
        """Record that the shard's batch has ended, after keeping its results.

        If the results are not complete yet, nothing is kept or recorded, and it returns what to wait for.
        """
        batch = standing.batch
        assert batch is not None
        if status.state.has_results:
            if (wait := self._keep_whole(shard, batch.batch_id, status)) is not None:
                return wait
            entry = replace(
                self._entry(RecordKind.ENDED, batch_id=batch.batch_id), unmentioned=status.unmentioned.value
            )
        elif status.later:
            again = self.parts.clock() + _LATER_SECONDS
            entry = self._entry(
                RecordKind.RELEASED, batch_id=batch.batch_id, reason=status.reason or "", not_before=again
            )
        else:
            entry = self._entry(
                RecordKind.REFUSED, batch_id=batch.batch_id, reason=status.reason or "rejected"
            )
        if batch.upload:  # before the record, after which no retry comes by here
            with self.parts.cleaning("an uploaded file"):
                self.parts.provider.discard(batch.upload)
        self._append(shard, standing, replace(entry, detail=status.detail))
        return None

    def _keep_whole(self, shard: PlannedShard, batch_id: str, status: BatchStatus) -> Wait | None:
        """Keep the results of a batch once they are complete, or have stayed incomplete for long."""
        sent = shard.requests - len(left_out_of(self.folder, self.plan, shard))
        expected = Expected.of(status, token=self.plan.token(shard), requests=sent)
        try:
            seen = self.keep_results(batch_id, expected)
        except (Incomplete, ResultsGone, Unavailable) as error:
            if self._is_patient(batch_id):
                return self._later(batch_id, error)
            if isinstance(error, Unavailable):
                raise
            seen = self._keep_part(batch_id, expected)
        if seen < expected.lines:
            self.parts.warn(
                f"Batch {batch_id}: the provider gives {share(seen, expected.lines, 'result')}, and has for"
                f" {RESULTS_PATIENCE_SECONDS / 60:.0f} minutes. The other rows count as missing."
            )
        return None

    def _is_patient(self, batch_id: str) -> bool:
        """Return whether results that are not complete may yet become so."""
        since = self.folder.read_short(batch_id)
        return since is None or self.parts.clock() < since + RESULTS_PATIENCE_SECONDS

    def _keep_part(self, batch_id: str, expected: Expected) -> int:
        """Keep the lines of results that stay incomplete: at least one, if the batch must have any."""
        try:
            return self.keep_results(batch_id, replace(expected, lines=min(1, expected.lines)))
        except (Incomplete, ResultsGone) as error:
            raise ResultsGone(
                f"Batch {batch_id} has ended, and its results could not be fetched for"
                f" {RESULTS_PATIENCE_SECONDS / 60:.0f} minutes: {error} Run the task again later: that costs nothing."
                " Clear it only if the provider has deleted the results: its rows are then sent, and paid, again."
            ) from None

    def _later(self, batch_id: str, error: Exception) -> Wait:
        now = self.parts.clock()
        self.folder.note_short(batch_id, now)
        reason = f"the results of batch {batch_id} are fetched again: {error}".rstrip(".")
        return Wait(until=now + _FETCH_AGAIN_SECONDS, reason=reason)

    def land(self, landing: Sequence[tuple[PlannedShard, Standing]]) -> None:
        """Stage the rows of these shards one after another, and record their results.

        The rows of the next shards are fetched meanwhile, and the records of the last ones written.
        """
        shards = [shard for shard, _ in landing]
        with (
            closing(ahead(self._fetch_ahead, shards, _AHEAD)) as fetched,
            ThreadPoolExecutor(_RECORDED_AT_ONCE) as pool,
        ):
            recording = deque[Future[None]]()
            for (shard, standing), _ in zip(landing, fetched, strict=True):
                landed = self._stage(shard, standing)
                recording.append(pool.submit(copy_context().run, self._record, shard, standing, landed))
                if len(recording) > _RECORDED_AT_ONCE:
                    recording.popleft().result()
            for future in recording:
                future.result()

    def _fetch_ahead(self, shard: PlannedShard) -> None:
        with suppress(StoreError):  # it is told in the shard's turn
            self._keys(shard)

    def _record(self, shard: PlannedShard, standing: Standing, landed: ShardResult) -> None:
        self._put_landed(shard, landed)
        self._append(shard, standing, self._entry(RecordKind.STAGED))

    def _stage(self, shard: PlannedShard, standing: Standing) -> ShardResult:
        """Stage the shard's rows. Returns their result."""
        began = self.parts.clock()
        gathered, tally = self.load(shard, standing)
        report = self._report(shard, standing, gathered, began) + tally.sure
        labels = {name: dict(counts) for name, counts in tally.labels.items()}
        report = replace(report, outcomes=tally.outcomes, codes=tally.codes, labels=labels)
        if self.plan.is_routed:
            spent, requests = report.spent, sum(report.attempts.values())
            totals = RouteTotals(requests, tally.outcomes[Outcome.SUCCEEDED], spent.cost, spent.list_cost)
            report = replace(report, routes={self.plan.route(shard).name: totals})
        return ShardResult(
            report=report,
            again=tally.again,
            again_rows=tally.again_rows,
            again_codes=tally.again_codes,
            words=tally.words,
            samples=tally.samples,
            failed_keys=tally.failed_keys,
            again_keys=tally.again_keys,
            batches=gathered.batches,
            sample=self._sample(shard, gathered.judged),
        )

    def load(self, shard: PlannedShard, standing: Standing) -> tuple[ReadResults, Tally]:
        """Stage the shard's rows from the kept results: answers, and failures for the rest. Records nothing."""
        try:
            keys = self._keys(shard)
        except StoreError:
            for _, lines in self._answers(shard, standing):  # if these are gone, too, they are named
                deque(lines, maxlen=0)
            raise
        return self._stage_rows(shard, standing, keys, self.part(shard.number))

    def _stage_rows(
        self, shard: PlannedShard, standing: Standing, keys: Path, part: Part
    ) -> tuple[ReadResults, Tally]:
        """Stage the rows of a keys file, and delete the file."""
        gathered = self._gather(shard, standing, read_layout(keys, shard))
        left_out = left_out_of(self.folder, self.plan, shard)
        for request, why in left_out.items():
            gathered.judged.leave_out(request, why)
        gathered.left_out = len(left_out)
        if shard.repeats:
            keys.unlink()
            return gathered, Tally()
        answers, failures = (
            self.scratch / f"{shard.number:04d}.{kind}.arrow" for kind in ("answers", "failures")
        )
        tally = RowWriter(self.plan.target, self._stamp(shard, standing), gathered.judged).write(
            keys, answers, failures
        )
        with landed_rows(answers) as good, landed_rows(failures) as bad:
            self.parts.target.load(self.plan.target, part, good, bad)
        for path in (keys, answers, failures):
            path.unlink()
        return gathered, tally

    def load_unsendable(self) -> None:
        """Stage the rows that could not be sent as failures, in a separate part with the number 0."""
        keys = self.scratch / f"{self.plan.nonce}-0000.keys.parquet"
        fetch_unsendable(self.folder, self.plan, keys)
        stamp = self._stamp(None, Standing())
        with (
            parquet_reader(keys) as rows,
            unsendable_failures(rows, self.plan.target, stamp) as failures,
            no_rows(self.plan.target.answer_columns) as answers,
        ):
            self.parts.target.load(self.plan.target, self.part(0), answers, failures)
        keys.unlink()

    def parts_of(self, number: int) -> list[Part]:
        """The parts in which the rows of a shard are staged."""
        return [self.part(number)]

    def drop_loaded(self) -> None:
        """Drop the plan's staged rows, once they are merged."""
        numbers = [0, *(shard.number for shard in self.plan.shards)]
        parts = [part for number in numbers for part in self.parts_of(number)]
        self.parts.target.drop_loaded(self.plan.target, parts)

    def part(self, number: int) -> Part:
        return Part(run_id=self.folder.run_id, round=self.plan.round, shard=number)

    def keep_results(self, batch_id: str, expected: Expected | None = None) -> int:
        """Bring the raw lines of a batch into the run folder, whole or not at all.

        Returns the number of lines. Raises `Incomplete`, and keeps nothing, if they are not the expected ones.
        """
        seen = Lines(self.parts.provider.results(batch_id), expected)
        aside = self.scratch / f"{secrets.token_hex(6)}.results.jsonl"
        if self.folder.write_results(batch_id, joined_lines(seen), aside, keep=True):
            self._fetched[batch_id] = aside
        return seen.count

    def _gather(self, shard: PlannedShard, standing: Standing, layout: Layout) -> ReadResults:
        if standing.ended is None:
            return ReadResults(judged=_rejected(standing, layout))
        unmentioned = Outcome(standing.ended.unmentioned or Outcome.MISSING)
        return self._gatherer(shard.route).gather(
            self._answers(shard, standing),
            token=self.plan.token(shard),
            layout=layout,
            unmentioned=unmentioned,
        )

    def _answers(
        self,
        shard: PlannedShard,  # noqa: ARG002 - a warehouse asks for the shard's rows
        standing: Standing,
    ) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Yield the kept lines of the shard's batch, then those of its spare batches.

        Yields nothing for a shard that was not taken.
        """
        if standing.ended is None:
            return
        for batch_id in (standing.ended.batch_id, *standing.spare):
            if (lines := self._kept_lines(batch_id)) is not None:
                yield batch_id, lines
            elif batch_id == standing.ended.batch_id:
                raise ResultsGone(
                    f"The kept results of batch {batch_id} are gone from the run folder {self.folder.path}."
                    " Restore them, or clear the task to ask again."
                )

    def _kept_lines(self, batch_id: str) -> Iterable[bytes] | None:
        here = self._fetched.pop(batch_id, None)
        blocks = self.folder.results(batch_id) if here is None else _read_once(here)
        return None if blocks is None else split_lines(blocks)

    def _stamp(self, shard: PlannedShard | None, standing: Standing) -> Bookkeeping:
        """Return the values that all rows of a shard share. With None, those of rows that could not be sent."""
        route = self.plan.routes[0] if shard is None else self.plan.route(shard)
        is_late = self.parts.clock() >= batches_until(self.plan.rules, self.deadline)
        return Bookkeeping(
            run_id=self.folder.run_id,
            shard=0 if shard is None else shard.number,
            spec_hash=route.spec_hash,
            model=route.call.model,
            route=route.name,
            planned_at=self.plan.planned_at,
            processed_at=self.parts.clock(),
            max_attempts=self.plan.limits.max_attempts,
            tries=self.plan.round - (1 if shard is None else shard.since) + 1,
            raw_excerpt=self.plan.limits.raw_excerpt,
            rejected=standing.ended is None,
            course=Course() if shard is None else self.plan.course(shard, is_late=is_late),
            answered=shard is not None and shard.answered,
            labelled=self._labelled,
            rows_per_request=route.rows_per_request if shard is not None and shard.packed else 1,
        )

    def _keys(self, shard: PlannedShard) -> Path:
        path = self.scratch / f"{self.plan.nonce}-{shard.number:04d}.keys.parquet"
        if not path.exists():
            fetch_keys(self.folder, self.plan, shard, path)
        return path

    def _sample(self, shard: PlannedShard, judged: Judgements) -> list[Sample]:
        """Return the values that a pilot compares for the shard. Empty if it is not in a pilot."""
        if not (shard.repeats or shard.repeated):
            return []
        return sampled(judged.values, OutputType.from_json(self.plan.output_type))

    def _put_landed(self, shard: PlannedShard, landed: ShardResult) -> None:
        path = self.scratch / f"{shard.number:04d}.landed.json"
        path.write_bytes(landed.to_json())
        self.folder.put_landed(shard.number, path)
        self.memory.note_landed(shard.number, landed)
        path.unlink()

    def _report(self, shard: PlannedShard, standing: Standing, gathered: ReadResults, began: float) -> Report:
        batch, ended, now = standing.batch, standing.ended, self.parts.clock()
        running = ended.at - batch.at if batch is not None and ended is not None else 0.0
        now_asked = self.plan.route(shard).way.in_real_time
        sent = batch is not None or standing.refused is not None or now_asked
        return Report(
            attempts={self.plan.round: shard.requests - gathered.left_out} if sent else {},
            strange=gathered.strange,
            batches=0 if now_asked else len(gathered.batches),
            maybe_twice=standing.maybe_twice,
            usage=Usage.total(list(gathered.judged.usages())),
            cache=gathered.judged.cache,
            output_squares=gathered.judged.output_squares,
            spent=_spent(gathered),
            durations=Durations(queued=self._queued(standing), running=running, landing=now - began),
        )

    def _queued(self, standing: Standing) -> float:
        """Return the seconds between the time when the round could begin and the creation of the shard's batch."""
        if standing.batch is None:
            return 0.0
        return max(0.0, standing.batch.at - self._round_since)

    @cached_property
    def _round_since(self) -> float:
        """Return when the round could begin, in seconds since the epoch."""
        before = self.folder.read_published(self.plan.round - 1) if self.plan.round > 1 else None
        return self.plan.planned_at if before is None else float(orjson.loads(before)["at"])

    def _entry(
        self, kind: RecordKind, *, batch_id: str = "", reason: str = "", not_before: float = 0.0
    ) -> Entry:
        now = self.parts.clock()
        return Entry(
            kind=kind,
            nonce=secrets.token_hex(6),
            at=now,
            batch_id=batch_id,
            reason=reason,
            not_before=not_before,
            by=self.parts.by,
        )

    def _append(self, shard: PlannedShard, standing: Standing, entry: Entry) -> None:
        """Record the entry, unless another attempt has recorded something since. Then that attempt goes on."""
        self.memory.append(shard.number, standing.last + 1, entry)


def _read_once(path: Path) -> Iterator[bytes]:
    """Yield a file's blocks, and delete the file at the end."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
    path.unlink()


def _spent(gathered: ReadResults) -> Spent:
    judged, stray = gathered.judged, gathered.stray_cost
    return Spent(
        cost=judged.cost + stray, list_cost=judged.list_cost, stray_cost=stray, unpriced=judged.unpriced
    )


def _rejected(standing: Standing, layout: Layout) -> Judgements:
    """Return the result of a shard that no batch has answered."""
    refused = standing.refused
    reason = "the run's time was over"
    if refused is not None:
        reason = " ".join(filter(None, (refused.reason, refused.detail)))
    outcome = Outcome.CANCELED if refused is None else Outcome.ERRORED
    code = "not_sent" if refused is None else "rejected"
    return Judgements.alike(layout, outcome, RowFailure(code=code, message=reason, retryable=False))
