"""Plan the next round: requests that are worth another try, under new custom_ids.

Their prompts are read from the shard files, so no source is read and no prompt is rendered again.
"""

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_batch_llm.core.model import Outcome, Way
from airflow_batch_llm.core.packing import unpack
from airflow_batch_llm.core.request import ShardBounds, custom_id
from airflow_batch_llm.core.selection import after_failure
from airflow_batch_llm.providers.incoming import split_lines
from airflow_batch_llm.providers.routed import by_route
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.shard_files import ShardWriter, fetch_keys, fetch_requests, prompt_blocks
from airflow_batch_llm.stage.plan.spool import ATTEMPTS, REQUEST
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedShard, new_run_token
from airflow_batch_llm.stage.records.standings import Again, ShardResult
from airflow_batch_llm.warehouses.arrow import int64_array

#: A truncated answer is asked for again with this many times the tokens.
TOKEN_CAP_FACTOR = 2


class _Course(NamedTuple):
    """The values that all requests of a shard share. Requests that differ in one of them go into separate shards."""

    route: str
    max_tokens: int | None
    rows: int
    before: tuple[str, ...]
    since: int
    answered: bool


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A shard, and its requests that are asked again, with their results."""

    shard: PlannedShard
    requests: dict[int, Again] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp:
    """Makes round n + 1 of a run from the failures of round n."""

    parts: Parts
    folder: RunFolder
    scratch: Path
    is_late: bool = False
    """Batches are given up: a request of a batch takes another route, if a rule says so."""

    def wanted(self, last: Plan, landed: Mapping[int, ShardResult]) -> dict[str, int]:
        """Return the number of requests that the next round would ask, by the name of their route."""
        return dict(Counter(name for _, _, name in self._going_on(last, landed)))

    def plan(
        self, last: Plan, landed: Mapping[int, ShardResult], allowed: Mapping[str, int] | None = None
    ) -> Plan | None:
        """Plan and freeze the next round, or return the plan of the first planner.

        `allowed` bounds the number of requests of a route. Returns None if no row is to be asked again.
        """
        known = self.folder.read_plan(last.round + 1)
        if known is None and (groups := self._groups(last, landed, allowed or {})):
            self.folder.create_plan(self._extend(last, groups).to_json(), last.round + 1)
            known = self.folder.read_plan(last.round + 1)
        return Plan.from_json(known) if known is not None else None

    def _going_on(
        self, last: Plan, landed: Mapping[int, ShardResult]
    ) -> Iterator[tuple[PlannedShard, Again, str]]:
        """Yield the requests that are asked again, with their shard and the name of the route that they take next."""
        for shard in last.shards:
            for one in landed[shard.number].again:
                if (name := self._next(last, shard, one)) is not None:
                    yield shard, one, name

    def _next(self, last: Plan, shard: PlannedShard, one: Again) -> str | None:
        """Return the name of the route that a request takes next, or None if the request has taken that route before."""
        own = last.route(shard).name
        name = one.to or own
        if self.is_late and last.base(name).way is Way.BATCH:
            late = last.course(shard, is_late=True).when_late(name)
            return None if late in (own, *shard.before) else late or name
        return name

    def _groups(
        self, last: Plan, landed: Mapping[int, ShardResult], allowed: Mapping[str, int]
    ) -> dict[_Course, list[_Chosen]]:
        """Return the requests that are asked again, by their course and in their order."""
        left = dict(allowed)
        groups: dict[_Course, list[_Chosen]] = {}
        for shard, one, name in self._going_on(last, landed):
            if name in left:
                if not left[name]:
                    continue
                left[name] -= 1
            chosen = groups.setdefault(self._course(last, shard, one, name), [])
            if not chosen or chosen[-1].shard is not shard:
                chosen.append(_Chosen(shard))
            chosen[-1].requests[one.request] = one
        return groups

    def _course(self, last: Plan, shard: PlannedShard, one: Again, name: str) -> _Course:
        own = last.route(shard).name
        if name == own:
            most = last.route(shard).call.max_tokens
            if most is not None and one.outcome is Outcome.TRUNCATED:
                most *= TOKEN_CAP_FACTOR
            rows = one.rows or last.route(shard).rows_per_request
            return _Course(name, most, rows, shard.before, shard.since, shard.answered)
        answered = shard.answered or one.outcome is Outcome.SUCCEEDED
        base = last.base(name)
        rows = one.rows or base.rows_per_request
        return _Course(name, base.call.max_tokens, rows, (*shard.before, own), last.round + 1, answered)

    def _extend(self, last: Plan, groups: Mapping[_Course, list[_Chosen]]) -> Plan:
        nonce = secrets.token_hex(5)
        draft = replace(
            last,
            round=last.round + 1,
            nonce=nonce,
            run_token=new_run_token(nonce, last.round + 1),
            planned_by=self.parts.by.to_json(),
            shards=(),
        )
        outcomes: Counter[str] = Counter()
        codes: Counter[str] = Counter()
        number = self._next_number(last)
        for course, chosen in groups.items():
            draft, route = _with_route(draft, course)
            written = self._write(last, draft, chosen, route, number)
            shards = tuple(
                replace(shard, before=course.before, since=course.since, answered=course.answered)
                for shard in written
            )
            draft = replace(draft, shards=(*draft.shards, *shards))
            number += len(shards)
            for one in chosen:
                self._count_replaced(last, one, outcomes, codes)
        return replace(draft, replaces={"outcomes": dict(outcomes), "codes": dict(codes)})

    def _next_number(self, last: Plan) -> int:
        """Return a number that no shard has, also none that was planned and left out after the canary."""
        frozen = self.folder.read_plan(last.round)
        assert frozen is not None, "the round has landed"
        return 1 + max(shard.number for shard in Plan.from_json(frozen).shards)

    def _write(
        self, last: Plan, draft: Plan, chosen: list[_Chosen], route: int, number: int
    ) -> tuple[PlannedShard, ...]:
        """Write the shards of one route. Requests keep their order and their rows."""
        writer = ShardWriter(
            folder=self.folder,
            scratch=self.scratch,
            nonce=draft.nonce,
            run_token=draft.run_token,
            bounds=ShardBounds.of(
                by_route(self.parts.provider, draft.routes[route].call.via).limits,
                rows_per_batch=last.limits.rows_per_batch,
                rows_per_request=draft.routes[route].rows_per_request,
            ),
            first_number=number,
            rows_per_request=draft.routes[route].rows_per_request,
        )
        template = self.parts.provider.encode(draft.routes[route].asked)
        schema = pq.read_schema(self._keys(last, chosen[0].shard))
        shards = writer.write_requests(template, self._prompts(last, chosen), route)
        return writer.write_keys(shards, self._rows(last, chosen), schema)

    def _count_replaced(self, last: Plan, one: _Chosen, outcomes: Counter[str], codes: Counter[str]) -> None:
        """Count the rows that are asked again, by the outcome and the error code that they had."""
        with pq.ParquetFile(self._keys(last, one.shard)) as file:
            for batch in file.iter_batches(columns=[REQUEST]):
                for request in batch.column(REQUEST).to_pylist():
                    if (again := one.requests.get(request)) is not None:
                        outcome = Outcome.SUCCEEDED if one.shard.answered else again.outcome
                        outcomes[outcome.value] += 1
                        codes.update([again.code] if again.code else [])

    def _prompts(self, last: Plan, chosen: list[_Chosen]) -> Iterator[pa.BinaryArray]:
        for one in chosen:
            path = self._requests(last, one.shard)
            with path.open("rb") as file:
                yield from prompt_blocks(self._prompts_in(last, one, split_lines(file)))
            path.unlink()

    def _prompts_in(self, last: Plan, one: _Chosen, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the prompts of a shard that are asked again, from its lines."""
        template = self.parts.provider.encode(last.route(one.shard).asked)
        token, item = last.token(one.shard), 0
        for ordinal, line in enumerate(lines):
            if one.shard.packed:
                prompts = unpack(template.prompt(line, custom_id(token, ordinal)))
                yield from (prompt for place, prompt in enumerate(prompts, item) if place in one.requests)
                item += len(prompts)
            elif ordinal in one.requests:
                yield template.prompt(line, custom_id(token, ordinal))

    def _requests(self, last: Plan, shard: PlannedShard) -> Path:
        path = self.scratch / f"{last.nonce}-{shard.number:04d}.again.jsonl"
        fetch_requests(self.folder, last, shard, path)
        return path

    def _rows(self, last: Plan, chosen: list[_Chosen]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all shards, numbered from 1 throughout, with this failure counted."""
        first = 0
        for one in chosen:
            new = {old: first + i for i, old in enumerate(sorted(one.requests))}
            with pq.ParquetFile(self._keys(last, one.shard)) as file:
                for batch in file.iter_batches():
                    yield _renumbered(batch, new, one, last)
            first += len(new)

    def _keys(self, last: Plan, shard: PlannedShard) -> Path:
        path = self.scratch / f"{last.nonce}-{shard.number:04d}.keys.parquet"
        if not path.exists():
            fetch_keys(self.folder, last, shard, path)
        return path


def _with_route(draft: Plan, course: _Course) -> tuple[Plan, int]:
    """Return the plan with the route of a course in it, and the place of the route."""
    route = draft.base(course.route)
    if (route.call.max_tokens, route.rows_per_request) != (course.max_tokens, course.rows):
        call = replace(route.call, max_tokens=course.max_tokens)
        route = replace(route, call=call, rows_per_request=course.rows, estimate=None)
    if route in draft.routes:
        return draft, draft.routes.index(route)
    return replace(draft, routes=(*draft.routes, route)), len(draft.routes)


def _renumbered(batch: pa.RecordBatch, new: dict[int, int], one: _Chosen, last: Plan) -> pa.RecordBatch:
    kept = batch.filter(pc.is_in(batch.column(REQUEST), int64_array(new)))
    requests: list[int] = kept.column(REQUEST).to_pylist()
    before: list[int] = kept.column(ATTEMPTS).to_pylist()
    attempts = [
        _attempts(one.requests[request], so_far, last.limits.max_attempts)
        for request, so_far in zip(requests, before, strict=True)
    ]
    columns = {REQUEST: [new[request] for request in requests], ATTEMPTS: attempts}
    for name, values in columns.items():
        at = kept.schema.get_field_index(name)
        kept = kept.set_column(at, kept.schema.field(at), int64_array(values))
    return kept


def _attempts(again: Again, so_far: int, most: int) -> int:
    """Return the failures of a row on the route that it takes next."""
    if again.to is not None:
        return 0
    return after_failure(again.outcome, retryable=True, attempts=so_far, tries=0, most=most).attempts
