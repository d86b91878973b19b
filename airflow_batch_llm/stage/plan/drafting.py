"""Draft a plan: read the source once, price it, and write the shards of the rows that no other run buys.

A draft may be dropped and written again: nothing is bought before it is frozen. The spool stays, so a planner that has
to leave out more rows does not read the source again.
"""

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import assert_never

import pyarrow as pa

from airflow_batch_llm.core.estimate import Estimate
from airflow_batch_llm.core.model import Caching, Way
from airflow_batch_llm.core.packing import LEAST_ROWS, PILOT_ROWS, longest_packed
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.core.request import ShardBounds
from airflow_batch_llm.core.selection import Reason
from airflow_batch_llm.core.settings import BadRow, OverBudget, Source, Stage
from airflow_batch_llm.errors import BudgetExceeded, InputError
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.providers.routed import by_route
from airflow_batch_llm.stage.budgets import Budgets
from airflow_batch_llm.stage.land.landing import SAMPLES, sample_keys
from airflow_batch_llm.stage.learning import Learning
from airflow_batch_llm.stage.parts import Parts, ReadsSource
from airflow_batch_llm.stage.plan.attaching import ATTACHMENT_BYTES, Attaching, attaching_of
from airflow_batch_llm.stage.plan.carried import restored
from airflow_batch_llm.stage.plan.partitions import (
    NUMBERED,
    REREAD,
    Opening,
    Outrun,
    fetch_partitions,
    put_partition,
    rules_of,
)
from airflow_batch_llm.stage.plan.quoting import (
    Quote,
    canary_size,
    canary_surcharge,
    canary_way,
    check_same_execution,
    choose_way,
    flex_problem,
    over_budget,
    shared_out,
    with_cache,
)
from airflow_batch_llm.stage.plan.reading import Reading, doubled_key, let_go, with_known
from airflow_batch_llm.stage.plan.resolved import Resolved, ResolvedRoute
from airflow_batch_llm.stage.plan.shard_files import ShardWriter, packed_prompts, with_reasons
from airflow_batch_llm.stage.plan.spool import PROBLEM, Spool, keys_schema
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedRoute, PlannedShard, RunLimits, new_run_token
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.stage.records.standings import read_judged, read_rounds
from airflow_batch_llm.stage.reusing import Reuse
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.registration import Place

#: The least shards of a route of which a canary may leave some out, and their least requests, so that little budget stays unused.
_PARTS, _LEAST = 20, 10


@dataclass(slots=True, kw_only=True)
class Drafting:
    """The work of one planner: the source in a spool, and its last draft."""

    stage: Stage
    parts: Parts
    folder: RunFolder
    max_tries: int
    resolved: Resolved
    target: Target
    place: Place
    scratch: Path
    is_offline: bool = False
    """Do not ask the provider to count tokens. Default: ask it."""
    opening: Opening | None = None
    """The partitions that other tasks have read. Default: this task reads the source."""
    _spool: Spool | None = field(default=None, init=False)
    _attaching: Attaching | None = field(default=None, init=False)
    _in_flight: dict[tuple[str, str], tuple[RunFolder, Plan]] = field(default_factory=dict, init=False)
    _done: set[tuple[str, str]] = field(default_factory=set, init=False)
    _draft: Plan | None = field(default=None, init=False)
    _beyond: float = field(default=0.0, init=False)  # dollars by which a draft took more than it was to take

    def read(self) -> None:
        """Spool the source and check its keys. The plans in flight are noted before, because they may land meanwhile."""
        self._note_in_flight()
        whole = self.parts.source, self.stage.source
        spool = self._spool = self._written(*whole) if self.opening is None else self._fetched(self.opening)
        spool.finish()
        if self.opening is not None and self.stage.max_rows is not None:
            spool.postpone_beyond(self.stage.max_rows)
        self._reuse().look(spool)
        let_go(self.parts)
        if twice := [key for batch in spool.duplicate_keys() for key in sample_keys(batch)]:
            raise doubled_key(self.stage.key, twice, self._reread)

    def _written(self, source: ReadsSource, wanted: Source, first: int | None = None) -> Spool:
        """Read rows of the source into the files of a spool. `first` is the number of the first row of a partition."""
        spool, most = Spool(self.scratch, self._columns, self.stage.key), self._max_prompt_bytes()
        at_once = None if first is None else (most, self.folder)
        self._attaching = attaching_of(self.stage, self.resolved, self.parts, self.scratch, at_once)
        reading = Reading.of(self.stage, self.resolved, self.target, self.parts, most, self._attaching)
        wanted = replace(wanted, columns=reading.columns)
        with closing(with_known(source, wanted, self.parts.target, self.target)) as rows:
            reading.fill(spool, rows, first or 0)
        return spool

    @property
    def _reread(self) -> str:
        """Say how a corrected source is read again. Empty if this task reads it."""
        return "" if self.opening is None else REREAD

    @property
    def _columns(self) -> pa.Schema:
        return pa.schema([*self.target.key, *self.target.carried])

    @property
    def rules(self) -> str:
        """The hash of the rules by which partitions are read."""
        return rules_of(self.stage, self.parts, self.resolved, self.target, self._max_prompt_bytes())

    def read_partition(self, opening: Opening, number: int) -> int:
        """Read a partition into the run folder. Returns the number of its rows."""
        spool = self._written(*opening.source(number, self.stage, self.parts), number * NUMBERED)
        spool.close_files()
        let_go(self.parts)
        put_partition(self.folder, opening, number, self.scratch)
        return spool.count

    def in_flight(self) -> list[tuple[str, str]]:
        """Return the plans that are in flight now, each as its run and its nonce."""
        self._note_in_flight()
        return list(self._in_flight)

    def _fetched(self, opening: Opening) -> Spool:
        """Fetch the rows that other tasks have read. Raises `Outrun` if they are gone, or were read by other rules."""
        for run, nonce in opening.in_flight:
            other = Registers(workspace=self.parts.workspace).folder(run)
            self.note(other, (nonce,))
        folders = fetch_partitions(self.folder, opening, self.rules, self.scratch)
        return Spool(self.scratch, self._columns, self.stage.key, folders)

    def _reuse(self) -> Reuse:
        return Reuse.of(self.stage, self.parts.target, self.target, self.resolved)

    def _max_prompt_bytes(self) -> int:
        """Return the size of the prompts that fit into the requests of every route."""
        return min(map(self._room, self.resolved.routes))

    def _room(self, route: ResolvedRoute) -> int:  # caching is decided on later: the longest form counts
        provider = self._provider(route)
        longest = max(route.caching(provider, how).template.overhead for how in Caching)
        room = provider.limits.max_request_bytes - longest - ATTACHMENT_BYTES * len(self.stage.attachments)
        return longest_packed(room) if route.rows_per_request > 1 else room

    def draft(self) -> Plan:
        """Return a draft without the rows that other runs buy: the last one, if it has none of them."""
        assert self._spool is not None, "the source is read first"
        self._note_in_flight()
        taken = self._take_out_in_flight(self._spool)
        if self._draft is None or taken:
            self._draft = self._write(self._spool)
        return self._draft

    @property
    def budgets(self) -> Budgets:
        """The shared budgets of the run."""
        return Budgets(parts=self.parts, folder=self.folder)

    def samples(self, most: int) -> list[bytes]:
        """Return a few requests of the draft as they would be sent."""
        assert self._spool is not None, "the draft is written first"
        lines: list[bytes] = []
        for number, route in enumerate(self.resolved.routes):
            wanted = (most - len(lines)) * route.rows_per_request
            for block, _ in packed_prompts(self._prompts(number, wanted), route.rows_per_request):
                lines += (route.template.line("r-0001-000000", prompt) for prompt in block.to_pylist())
        return lines[:most]

    def _prompts(self, route: int, requests: int) -> Iterator[pa.BinaryArray]:
        """Yield the prompts of the first requests of a route as they are sent."""
        assert self._spool is not None, "the source is read first"
        prompts = self._spool.prompts(route, requests)
        if self._attaching is None:
            return prompts
        run = None if self.stage.plan_only or self.is_offline else self.folder
        return self._attaching.settled(prompts, self._max_prompt_bytes(), run)

    def release(self) -> None:
        """Give back the dollars that the draft holds."""
        if self._draft is not None:
            self.budgets.release(self._draft.budgets)

    def forget(self) -> None:
        """Drop the draft, because other runs have taken its dollars, or it costs more than are left."""
        most = None if self._draft is None else self.budgets.most(self._draft.budgets)
        if self._draft is not None and most is not None:
            self._beyond += max(0.0, (self._draft.dollars or 0.0) - most[0])
        self._draft = None

    def note(self, other: RunFolder, among: Sequence[str] | None = None) -> None:
        """Note that a run buys rows by these plans (`among`), even if it has landed them since the source was read."""
        for plan in read_rounds(other):
            if self._buys_same(plan) and (among is None or plan.nonce in among):
                self._note(other, plan)

    def close(self) -> None:
        """Close the spool's database."""
        if self._spool is not None:
            self._spool.close()

    def _note_in_flight(self) -> None:
        """Note the plans of other runs that buy rows: a round is in flight until it is published."""
        registers = Registers(workspace=self.parts.workspace)
        for other in registers.open_runs(str(self.place), but=self.folder):
            for plan in read_rounds(other):
                if self._buys_same(plan) and other.read_published(plan.round) is None:
                    self._note(other, plan)

    def _note(self, other: RunFolder, plan: Plan) -> None:
        check_same_execution(self.stage, plan, other.path)
        self._in_flight.setdefault((other.path, plan.nonce), (other, plan))

    def _buys_same(self, plan: Plan) -> bool:
        """Return whether a plan asks the same question for the same target, as far as the plan shows."""
        asked = {route.spec_hash for route in self.resolved.routes}
        return plan.place == self.place and any(route.spec_hash in asked for route in plan.routes)

    def _take_out_in_flight(self, spool: Spool) -> int:
        """Take out the rows of the plans that were not looked at before. Returns the number of rows taken out."""
        return sum(
            self._take_out(spool, other, plan, shard.number, routes)
            for other, plan in self._not_done()
            for shard in read_judged(other, plan).shards
            if not shard.repeats
            if (routes := self.resolved.current.routes_of(plan.route(shard).spec_hash))
        )

    def _not_done(self) -> Iterator[tuple[RunFolder, Plan]]:
        for name, pair in self._in_flight.items():
            if name not in self._done:
                yield pair
                self._done.add(name)

    def _take_out(self, spool: Spool, other: RunFolder, plan: Plan, shard: int, routes: Sequence[int]) -> int:
        local = self.scratch / f"{plan.nonce}-{shard}.keys.parquet"
        if not other.get_keys(plan.nonce, shard, local):
            raise Outrun(
                f"The run {other.path} has landed while the source was read. The source is read again."
            )
        taken = spool.take_out(local, plan.target.key, routes)
        local.unlink()
        return taken

    def _begun(self, routes: tuple[PlannedRoute, ...]) -> Plan:
        nonce = secrets.token_hex(5)
        own = self.resolved.own
        return Plan(
            round=1,
            nonce=nonce,
            run_token=new_run_token(nonce, 1),
            planned_at=self.parts.clock(),
            max_tries=self.max_tries,
            spec_hash=own.spec_hash,
            spec=own.spec.to_json(),
            provider=self.parts.provider.name,
            model=own.call.model,
            routes=routes,
            output_type=self.resolved.output_type.to_json(),
            rules=self.resolved.rules,
            target=self.target,
            limits=RunLimits.of(self.stage),
            planned_by=self.parts.by.to_json(),
            deployment=self.parts.deployment,
            place=self.place,
            budgets=self.budgets.periods(self.stage.budget),
            lists_shards=True,
            execution=self.stage.execution,
        )

    def _write(self, spool: Spool) -> Plan:
        """Count, price, and write the shards' files."""
        reuse = self._reuse()
        reused = reuse.choose(spool)
        requests = spool.number_requests(self.resolved.ranks, self.resolved.specs)
        problems = spool.problems()
        if problems:
            with closing(spool.rows_with(Reason.UNSENDABLE)) as reader:
                self._tell_bad_rows(reader.read_next_batch().slice(0, SAMPLES), sum(problems.values()))
        ways = [self._way(route, count) for route, count in zip(self.resolved.routes, requests, strict=True)]
        choice = self.stage.request.cache_system_prompt
        self.resolved = with_cache(self.resolved, self.parts, choice, ways, requests)
        guesses = [self._guess(spool, route, way, requests[route]) for route, way in enumerate(ways)]
        allowed = self._allowed(guesses, self._surcharge(ways, guesses))
        routes = tuple(
            route.planned(way, guess)
            for route, way, guess in zip(self.resolved.routes, ways, guesses, strict=True)
        )
        size, why = canary_size(self.stage.canary, sum(allowed))
        if why:
            self.parts.log(why)
        if size:
            apart = spool.set_apart(size, allowed)
            allowed = [*(count - few for count, few in zip(allowed, apart, strict=True)), *apart]
            routes += self._canary_routes(spool, apart)
        draft = self._begun(routes + self._pilot_routes(spool, allowed, ways[0]))
        writer = self._writer(draft)
        fits = bool(size) and self.stage.guards.on_over_budget is OverBudget.PARTIAL
        draft = replace(draft, sends_what_fits=fits)
        lost = writer.write_unsendable(spool.apart_from_requests(reuse.specs)) if problems or reused else ""
        return replace(
            draft,
            shards=self._write_shards(writer, spool, allowed, fits=fits),
            problems=problems,
            unsendable_sha256=lost,
            donors=reuse.donors if reused else (),
            why={str(reason): count for reason, count in spool.reasons(allowed).items()},
            canary_why={
                str(reason): count
                for reason, count in spool.reasons_of(range(len(ways), len(routes))).items()
            },
        )

    def _writer(self, draft: Plan) -> ShardWriter:
        return ShardWriter(
            folder=None if self.stage.plan_only else self.folder,
            scratch=self.scratch,
            nonce=draft.nonce,
            run_token=draft.run_token,
            bounds=self._bounds(self.resolved.own),
        )

    def _surcharge(self, ways: Sequence[Way], guesses: Sequence[Estimate]) -> Decimal:
        """Return the most dollars that the canary and the pilot may add to the estimates."""
        surcharge = canary_surcharge(self.stage.canary, ways, guesses)
        if self.resolved.pilot is not None:
            surcharge += min(PILOT_ROWS, guesses[0].requests) * (guesses[0].per_request or Decimal(0))
        return surcharge

    def _pilot_routes(self, spool: Spool, allowed: Sequence[int], way: Way) -> tuple[PlannedRoute, ...]:
        """Return the route of the requests that ask some rows packed, too. Empty if there is no pilot."""
        pilot, own = self.resolved.pilot, len(self.resolved.routes)
        if pilot is None:
            return ()
        items = min(PILOT_ROWS, max([allowed[0], *allowed[own : own + 1]]))
        quote = Quote(
            provider=self.parts.provider, output_type=self.resolved.output_type, route=pilot, way=way
        )
        return (replace(pilot.planned(way, quote.estimate(spool.prompts(0, items), items)), pilot=True),)

    def _with_pilot(
        self, writer: ShardWriter, spool: Spool, shards: tuple[PlannedShard, ...], route: int
    ) -> tuple[PlannedShard, ...]:
        """Write the first prompts of the stage's own route once more, packed, into a shard of their own after the others.

        The canary's come first, if there is one: they are spread over the source.
        """
        pilot, own = self.resolved.pilot, len(self.resolved.routes)
        if pilot is None:
            return shards
        first = next((shard for shard in shards if shard.route % own == 0), None)
        items = 0 if first is None else min(PILOT_ROWS, first.items)
        if first is None or items < LEAST_ROWS:
            self.parts.log(f"No pilot: fewer than {LEAST_ROWS} rows of the route are sent.")
            return shards
        writer = replace(
            writer,
            first_number=len(shards) + 1,
            bounds=replace(self._bounds(pilot), requests=items),
            rows_per_request=pilot.rows_per_request,
        )
        written = writer.write_requests(pilot.template, spool.prompts(first.route, items), route)
        rows = spool.keyed_rows(first.route, items)
        written = writer.write_keys(written, rows, keys_schema(spool.columns))
        again = replace(written[0], rows=0, repeats=first.number)
        return (*(replace(one, repeated=True) if one is first else one for one in shards), again)

    def _canary_routes(self, spool: Spool, requests: Sequence[int]) -> tuple[PlannedRoute, ...]:
        """Return the routes of the canary's requests: one for each of the stage's, asked in the canary's way."""
        planned = []
        for number, (route, count) in enumerate(zip(self.resolved.routes, requests, strict=True)):
            way = self._way(replace(route, way=canary_way(self.stage.canary, self._provider(route))), count)
            guess = self._guess(spool, len(requests) + number, way, count)
            planned.append(replace(route.planned(way, guess), canary=True))
        return tuple(planned)

    def _way(self, route: ResolvedRoute, requests: int) -> Way:
        problem = flex_problem(self._provider(route), route.call)
        way, why = choose_way(route.way, math.ceil(requests / route.rows_per_request), problem)
        if why and requests:
            self.parts.log(why)
        return way

    def _provider(self, route: ResolvedRoute) -> Provider:
        return by_route(self.parts.provider, route.call.via)

    def _bounds(self, route: ResolvedRoute) -> ShardBounds:
        limits = self._provider(route).limits
        return ShardBounds.of(
            limits,
            rows_per_batch=self.stage.pace.rows_per_batch,
            rows_per_request=route.rows_per_request,
        )

    def _guess(self, spool: Spool, route: int, way: Way, requests: int) -> Estimate:
        resolved = self.resolved.routes[route % len(self.resolved.routes)]
        learned = Learning(parts=self.parts)
        quote = Quote(
            provider=None if self.is_offline else self.parts.provider,
            output_type=self.resolved.output_type,
            route=resolved,
            way=way,
            measured=learned.of(resolved.spec_hash),
            cached=learned.cached(resolved.call, resolved.spec_hash, way),
        )
        return quote.estimate(spool.prompts(route, requests), requests)

    def _write_shards(
        self, writer: ShardWriter, spool: Spool, allowed: Sequence[int], *, fits: bool
    ) -> tuple[PlannedShard, ...]:
        """Write the shards of each route, numbered throughout. Those of the canary come first.

        With `fits`, those after the canary are small enough to leave some of them out.
        """
        shards: tuple[PlannedShard, ...] = ()
        own = len(self.resolved.routes)
        for route in (*range(own, len(allowed)), *range(own)):
            if requests := allowed[route]:
                resolved = self.resolved.routes[route % own]
                bounds = self._bounds(resolved)
                may_be_left_out = fits and route < own
                if may_be_left_out:
                    few = min(
                        bounds.requests, max(_LEAST, -(-requests // (_PARTS * resolved.rows_per_request)))
                    )
                    bounds = replace(bounds, requests=few)
                writer = replace(
                    writer,
                    first_number=len(shards) + 1,
                    bounds=bounds,
                    rows_per_request=resolved.rows_per_request,
                )
                written = writer.write_requests(resolved.template, self._prompts(route, requests), route)
                rows = spool.keyed_rows(route, requests)
                written = writer.write_keys(written, rows, keys_schema(spool.columns))
                shards += with_reasons(spool, route, written) if may_be_left_out else written
        return self._with_pilot(writer, spool, shards, len(allowed))

    def _tell_bad_rows(self, rows: pa.RecordBatch, count: int) -> None:
        """Warn about rows that cannot be sent, or refuse them, with some of their keys and why the first one cannot."""
        problems = [str(problem).partition(": ") for problem in rows.column(PROBLEM).to_pylist()]
        keys = sample_keys(restored(rows, self.target.key))
        shown = ", ".join(f"{key} ({code})" for key, (code, _, _) in zip(keys, problems, strict=True))
        told = f"{counted(count, 'row')} cannot be sent"
        example = f"{shown}, for example. Of the first one: {problems[0][2]}"
        match self.stage.guards.on_bad_row:
            case BadRow.RECORD:
                self.parts.warn(f"{told}: {example}")
            case BadRow.FAIL:
                raise InputError(
                    f"{told}, and on_bad_row='fail': {example} Correct them, leave them out of the source, or set"
                    f" on_bad_row='record'.{self._reread} Nothing was sent."
                )
            case _:
                assert_never(self.stage.guards.on_bad_row)

    def _allowed(self, guesses: Sequence[Estimate], surcharge: Decimal) -> list[int]:
        """Return the number of requests of each route that are sent, if the run costs `surcharge` dollars more than estimated."""
        (most, _), on_over_budget = self._most(), self.stage.guards.on_over_budget
        if most is not None:
            most = max(0.0, most - float(surcharge))
        wished = [guess.requests for guess in guesses]
        allowed = shared_out(guesses, most, [route.max_cost_usd for route in self.resolved.routes])
        if allowed == wished or self.stage.plan_only:
            return allowed
        match on_over_budget:
            case OverBudget.PARTIAL:
                return allowed
            case OverBudget.FAIL:
                raise BudgetExceeded(over_budget(self.resolved.routes, guesses, surcharge, self._most()[1]))
            case _:
                assert_never(on_over_budget)

    def _most(self) -> tuple[float | None, str]:
        """Return the most dollars of the run, and the name of what sets them: its own limit, or a shared budget."""
        own = self.stage.max_cost_usd
        shared = self.budgets.most(self.budgets.periods(self.stage.budget))
        if shared is None or (own is not None and own <= shared[0]):
            return own, "max_cost_usd" if own is None else f"max_cost_usd={own:g}"
        return max(0.0, shared[0] - self._beyond), shared[1]
