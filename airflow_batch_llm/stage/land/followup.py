"""The next round: requests that failed for a reason worth another try, under custom_ids of their own.

Their lines are taken out of the shard files as they were sent, so no source is read and no prompt is rendered again.
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.request import ShardBounds, custom_id
from airflow_batch_llm.core.selection import after_failure
from airflow_batch_llm.providers.lines import split_lines
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.shard_files import ShardWriter
from airflow_batch_llm.stage.plan.spool import ATTEMPTS, REQUEST
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.payloads import fetch_keys, fetch_requests
from airflow_batch_llm.stage.records.plan import Plan, PlannedRoute, PlannedShard, new_run_token
from airflow_batch_llm.stage.records.standings import ShardResult
from airflow_batch_llm.warehouses.arrow import binary_array

#: A truncated answer is asked for again with this many times the tokens.
TOKEN_CAP_FACTOR = 2

_PROMPTS_AT_ONCE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp:
    """Makes round n + 1 of a run from what round n left."""

    parts: Parts
    folder: RunFolder
    scratch: Path

    def plan(self, last: Plan, landed: dict[int, ShardResult]) -> Plan | None:
        """Plan and freeze the next round, or return the plan of the first planner.

        Returns None if no row is to be asked again.
        """
        known = self.folder.read_plan(last.round + 1)
        if known is None and any(one.again for one in landed.values()):
            self.folder.create_plan(self._extend(last, landed).to_json(), last.round + 1)
            known = self.folder.read_plan(last.round + 1)
        return Plan.from_json(known) if known is not None else None

    def _extend(self, last: Plan, landed: dict[int, ShardResult]) -> Plan:
        nonce = secrets.token_hex(5)
        routes = (*last.routes, *(_raised(route) for route in last.routes))
        draft = replace(
            last,
            round=last.round + 1,
            nonce=nonce,
            run_token=new_run_token(nonce, last.round + 1),
            routes=routes,
            planned_by=self.parts.by.to_json(),
        )
        shards: tuple[PlannedShard, ...] = ()
        number = max(shard.number for shard in last.shards) + 1
        for route in range(len(routes)):
            written = self._write(last, draft, landed, route, number)
            shards += written
            number += len(written)
        return replace(draft, shards=shards)

    def _write(
        self, last: Plan, draft: Plan, landed: dict[int, ShardResult], route: int, number: int
    ) -> tuple[PlannedShard, ...]:
        """The shards of one route: requests keep their order, and their rows stay with them."""
        chosen = [
            _Chosen(shard, wanted)
            for shard in last.shards
            if (wanted := _wanted(shard, landed, route, len(last.routes)))
        ]
        if not chosen:
            return ()
        writer = ShardWriter(
            folder=self.folder,
            scratch=self.scratch,
            nonce=draft.nonce,
            run_token=draft.run_token,
            bounds=ShardBounds.of(self.parts.provider.limits, rows_per_batch=last.limits.rows_per_batch),
            first_number=number,
        )
        template = self.parts.provider.encode(draft.routes[route].call)
        schema = pq.read_schema(self._keys(last, chosen[0].shard))
        shards = writer.write_requests(template, self._prompts(last, chosen), route)
        return writer.write_keys(shards, self._rows(last, chosen), schema)

    def _prompts(self, last: Plan, chosen: "list[_Chosen]") -> Iterator[pa.BinaryArray]:
        for one in chosen:
            path = self._requests(last, one.shard)
            template = self.parts.provider.encode(last.route(one.shard).call)
            token = last.token(one.shard)
            with path.open("rb") as file:
                prompts = (
                    template.prompt(line, custom_id(token, ordinal))
                    for ordinal, line in enumerate(split_lines(file))
                    if ordinal in one.requests
                )
                while some := list(islice(prompts, _PROMPTS_AT_ONCE)):
                    yield binary_array(some)
            path.unlink()

    def _requests(self, last: Plan, shard: PlannedShard) -> Path:
        path = self.scratch / f"{last.nonce}-{shard.number:04d}.again.jsonl"
        fetch_requests(self.folder, last, shard, path)
        return path

    def _rows(self, last: Plan, chosen: "list[_Chosen]") -> Iterator[pa.RecordBatch]:
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


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A shard, and those of its requests that are asked again, with what became of them."""

    shard: PlannedShard
    requests: dict[int, Outcome]


def _wanted(
    shard: PlannedShard, landed: dict[int, ShardResult], route: int, routes: int
) -> dict[int, Outcome]:
    """The requests of this shard that the next round asks by this route."""
    wanted = {}
    for request, outcome in landed[shard.number].again:
        raised = shard.route + routes if outcome is Outcome.TRUNCATED else shard.route
        if raised == route:
            wanted[request] = outcome
    return wanted


def _raised(route: PlannedRoute) -> PlannedRoute:
    """Return the route with a higher token limit."""
    call = route.call
    if call.max_tokens is None:
        return route
    raised = replace(call, max_tokens=call.max_tokens * TOKEN_CAP_FACTOR)
    return replace(route, call=raised, estimate=None)


def _renumbered(batch: pa.RecordBatch, new: dict[int, int], one: _Chosen, last: Plan) -> pa.RecordBatch:
    kept = batch.filter(pc.is_in(batch.column(REQUEST), pa.array(new, pa.int64())))
    requests: list[int] = kept.column(REQUEST).to_pylist()
    before: list[int] = kept.column(ATTEMPTS).to_pylist()
    attempts = [
        after_failure(
            one.requests[request],
            retryable=True,
            attempts=so_far,
            tries=0,
            most=last.limits.max_attempts,
        ).attempts
        for request, so_far in zip(requests, before, strict=True)
    ]
    columns = {REQUEST: [new[request] for request in requests], ATTEMPTS: attempts}
    for name, values in columns.items():
        at = kept.schema.get_field_index(name)
        kept = kept.set_column(at, kept.schema.field(at), pa.array(values, pa.int64()))
    return kept
