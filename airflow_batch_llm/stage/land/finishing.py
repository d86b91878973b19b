"""End a run: store its report, judge it, and clean up.

The report is stored once. A retry after that reads it, has the same verdict, and does nothing else.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from airflow_batch_llm.core import caching
from airflow_batch_llm.core.drift import Shift, add_mixes, shifts, told
from airflow_batch_llm.core.journal import Standing, stand
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.packing import compared_columns, judge_pilot
from airflow_batch_llm.core.printing import counted, share, verb
from airflow_batch_llm.core.report import Provenance, Report, Verdict, gate, miscount
from airflow_batch_llm.core.selection import Reason
from airflow_batch_llm.errors import (
    CanaryFailed,
    InputError,
    ProviderError,
    QualityGateFailed,
    Refused,
    StoreError,
)
from airflow_batch_llm.stage.budgets import Budgets
from airflow_batch_llm.stage.canary import CanaryJudge
from airflow_batch_llm.stage.land.collecting import Collector
from airflow_batch_llm.stage.land.deleting import VendorCopies
from airflow_batch_llm.stage.land.gathering import EXTRA_ITEMS
from airflow_batch_llm.stage.land.ledger import Ledger
from airflow_batch_llm.stage.learning import Learning, compared
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedRoute, PlannedShard
from airflow_batch_llm.stage.records.registers import LabelHistory, LabelledRun, Registers
from airflow_batch_llm.stage.records.run_index import RunIndex
from airflow_batch_llm.stage.records.standings import RunMemory, ShardResult, read_rounds
from airflow_batch_llm.stage.reusing import Copier
from airflow_batch_llm.stage.round import Round
from airflow_batch_llm.stage.send.sweeping import discard_unused, is_loose, read_strays, reported, sweep_ended
from airflow_batch_llm.stage.send.uploading import delete_uploads
from airflow_batch_llm.warehouses.side_tables import prepare_tables

#: The number of different reasons for refusals in the verdict.
_REFUSALS = 2

#: At most this many batches that were created twice are named.
_TOLD_STRAYS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The run is over."""

    report: Report
    about: Provenance

    def raise_for_verdict(self) -> None:
        """Raise `QualityGateFailed`, or `CanaryFailed`, if too few rows succeeded. The good ones have landed."""
        if not self.report.passed:
            stopped = self.report.why.get(Reason.STOPPED)
            failed = (CanaryFailed if stopped else QualityGateFailed)(
                f"{self.report.verdict} The good rows are in {self.about.target}, the others in its failures table,"
                " with the reason in _llm_error_message."
            )
            failed.detail = self.report.words
            raise failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Finisher:
    """Ends one generation of a run."""

    parts: Parts
    folder: RunFolder
    first: Plan

    def stored(self) -> Finished | None:
        """Return the ended run, or None if it has not ended."""
        data = self.folder.read_report()
        return None if data is None else self._finished(data)

    def _finished(self, data: bytes) -> Finished:
        fields = orjson.loads(data)
        return Finished(report=Report.from_json(fields["report"]), about=_about(fields["about"]))

    def planned(self) -> Finished:
        """Return the end of a run that only plans."""
        report = Report(why=self.first.why, verdict=self._outlook(), estimate=self.first.forecast())
        return Finished(report=report, about=self._about([self.first], ()))

    def finish(self, rounds: Sequence[Plan], memory: RunMemory) -> Finished:
        """Add up, judge and store the report. If another attempt has stored one, that one counts."""
        landed = [list(memory.all_landed(plan.shards).values()) for plan in rounds]
        may_show_up = self._sweep(rounds, memory)
        shards = [one for plan in rounds for one in memory.standings(plan)]
        discard_unused(self.parts, [shard for shard, _ in shards], memory)
        if may_show_up or is_loose(shards):
            Registers(workspace=self.parts.workspace).add_loose(self.first.provider, self.folder)
        strays = read_strays(self.folder, shards)
        canary = CanaryJudge(folder=self.folder, plan=self.first)
        report = self._added_up(rounds, landed, reported(strays), canary)
        verdict = self._explained(canary.stop(), report, landed[-1], shards)
        before = self._history.before(self.folder.run_id) if report.labels else []
        shifted = shifts(add_mixes([one["labels"] for one in before]), report.labels)
        report = replace(report, drift={one.column: one.index for one in shifted}).judged(verdict)
        about = self._about(rounds, _batch_ids(shards))
        stored = {
            "report": report.to_json(),
            "about": _fields(about),
            "strays": [stray.batch_id for stray in strays],
        }
        self._tell_of_strays(shards, report)
        data = orjson.dumps(stored)
        if is_own := self.folder.create_report(data):  # once: earlier runs are added up
            Learning(parts=self.parts).note(rounds, landed)
        self._keep_labels(report, shifted, before)
        problem = miscount(report)
        if problem and not self._is_erased(
            rounds
        ):  # said after the report is stored: the answers have landed
            warnings.warn(
                f"The report of {self.folder.path} does not add up: {problem}", RuntimeWarning, stacklevel=2
            )
        stored_by_other = None if is_own else self.stored()
        return self._ended(stored_by_other or self._finished(data))

    def _added_up(
        self,
        rounds: Sequence[Plan],
        landed: Sequence[Sequence[ShardResult]],
        strays: Report,
        canary: CanaryJudge,
    ) -> Report:
        """Return the report of all rounds, before it is judged."""
        total = summed(rounds, landed)
        report = replace(
            total + strays,
            why=self._why(rounds[0]),
            estimate=self.first.forecast(),
            reviewed=self.folder.count_reviewed() if self.first.target.review else 0,
            canary=canary.reported(),
            packing=told_packing(rounds, total) | self._piloted(rounds[0], landed[0]),
            caching=self._cached(rounds, landed),
        )
        if rounds[0].is_stopped:
            return report
        return replace(report, estimate_off=compared(self.first, report))

    def _explained(
        self,
        stop: Verdict | None,
        report: Report,
        landed: Sequence[ShardResult],
        shards: Sequence[tuple[PlannedShard, Standing]],
    ) -> Verdict:
        """Judge the rows unless the canary has, and add the provider's words about failed rows."""
        samples = [key for one in landed for key in one.samples]
        verdict = stop or gate(report, self.first.limits.min_success_ratio, samples=samples)
        if verdict.passed:
            return verdict
        refused = self._refusals(shards)
        reason = " ".join((verdict.reason, *(told for told, _ in refused)))
        said = [said for _, said in refused] or _words(landed)
        return replace(verdict, reason=reason, words=" ".join(filter(None, said)))

    def _why(self, first: Plan) -> Mapping[str, int]:
        """Return the rows by reason. A row whose answer was gone before it was copied counts as lost."""
        data = self.folder.read_copied() if first.reused else None
        lost = 0 if data is None else first.reused - int(orjson.loads(data)["rows"])
        if not lost:
            return first.why
        return {**first.why, str(Reason.REUSED): first.reused - lost, str(Reason.LOST): lost}

    @property
    def _history(self) -> LabelHistory:
        return LabelHistory(
            workspace=self.parts.workspace, target=self.first.registered_as, deployment=self.first.deployment
        )

    def _keep_labels(self, report: Report, shifted: Sequence[Shift], before: Sequence[LabelledRun]) -> None:
        """Warn of labels that have drifted since the runs before, and keep this run's for the next ones."""
        limit = self.first.limits.warn_on_drift
        for one in shifted:
            if limit is not None and one.is_sure and one.index > limit:
                self.parts.warn(told(one, limit, counted(len(before), "run")))
        if report.passed and report.labels:
            self.parts.spool.mkdir(parents=True, exist_ok=True)
            with suppress(StoreError):  # the next run has one run less to compare with
                self._history.add(self.folder.run_id, report.labels, before, self.parts.spool / "labels.new")

    def _piloted(self, plan: Plan, landed: Sequence[ShardResult]) -> dict[str, Any]:
        """Judge the pilot, keep its result for later runs, and return it for the report. Empty if there was no pilot."""
        results = {shard.number: one for shard, one in zip(plan.shards, landed, strict=True)}
        repeated = next((shard for shard in plan.shards if shard.repeats), None)
        limit, rows = plan.limits.min_agreement, plan.limits.rows_per_request
        if repeated is None or limit is None:
            return {}
        verdict = judge_pilot(
            results[repeated.repeats].sample,
            results[repeated.number].sample,
            list(compared_columns(OutputType.from_json(plan.output_type)).values()),
            limit,
        )
        if verdict is None:
            self.parts.warn("The pilot had too few good answers to compare. The next run tries again.")
            return {"pilot": None}
        spec = plan.route(repeated).spec_hash
        Registers(workspace=self.parts.workspace).add_packing(spec, rows, verdict.to_json())
        follows = "Later runs pack" if verdict.packs else "Later runs ask each row alone"
        self.parts.log(f"Pilot of rows_per_request={rows}: {verdict.told} {follows}.")
        return {
            "pilot": {"compared": verdict.compared, "agreement": verdict.agreement, "packs": verdict.packs}
        }

    def _cached(
        self, rounds: Sequence[Plan], landed: Sequence[Sequence[ShardResult]]
    ) -> dict[str, dict[str, Any]]:
        """Log the dollars that the vendor's cache has saved or cost by route, and return them for the report."""
        shards = zip(rounds, landed, strict=True)
        found = cached(
            (plan.route(shard), result.report)
            for plan, results in shards
            for shard, result in zip(plan.shards, results, strict=True)
        )
        for name, (total, _) in found.items():
            (self.parts.log if total.cache.won >= 0 else self.parts.warn)(caching.told(name, total.cache))
        return told_caching(found)

    def _is_erased(self, rounds: Sequence[Plan]) -> bool:
        """Return whether rows were erased from the run after it was planned: they have no outcome."""
        return any(
            self.folder.erased_hashes(plan.nonce, shard.number) for plan in rounds for shard in plan.shards
        )

    def _refusals(self, shards: Sequence[tuple[PlannedShard, Standing]]) -> list[tuple[str, str]]:
        """Return why the provider refused batches, as codes with statuses and in its own words, the most frequent first."""
        refused = {
            shard.number: standing.refused.reason
            for shard, standing in shards
            if standing.refused is not None
        }
        last = {reason: number for number, reason in refused.items()}
        return [
            (
                f"The provider did not take {share(count, len(shards), 'batch')}: {reason}",
                self._words(last[reason]),
            )
            for reason, count in Counter(refused.values()).most_common(_REFUSALS)
        ]

    def _words(self, number: int) -> str:
        """Return the vendor's words about a shard that it refused."""
        refused = stand(self.folder.journal(number)).refused
        return refused.detail if refused is not None else ""

    def ended(self) -> Finished | None:
        """Return the ended run after taking it out of the registers, or None.

        The worker that stored the report may have died before.
        """
        stored = self.stored()
        return None if stored is None else self._ended(stored)

    def _ended(self, stored: Finished) -> Finished:
        registers = Registers(workspace=self.parts.workspace)
        RunIndex(workspace=self.parts.workspace).end(
            self.folder, self.first, stored.report, stored.about.completed_at or self.parts.clock()
        )
        registers.close_run(self.first.registered_as, self.folder)
        days = self.first.limits.keep_days
        if days is not None:
            registers.add_due(self.folder, (stored.about.completed_at or 0.0) + days * 86_400)
        delete_uploads(self.parts, self.folder, self.first)
        VendorCopies(parts=self.parts, folder=self.folder, first=self.first).delete()
        Budgets(parts=self.parts, folder=self.folder).settle(self.first, stored.report.spent.cost)
        Ledger(parts=self.parts).settle(self.folder)
        return stored

    def _sweep(self, rounds: Sequence[Plan], memory: RunMemory) -> bool:
        """Sweep once in each run: a gateway may have created a batch twice, or a frozen process after its shard landed.

        Returns whether the next run must look again.
        """
        try:
            return sweep_ended(self.parts, self.folder, rounds, memory)
        except ProviderError as error:
            self.parts.warn(f"Batches that were created twice could not be looked for: {error.in_full}")
            # A server without a list of batches will have none for the next run, either.
            return not isinstance(error, Refused)

    def _tell_of_strays(self, shards: Sequence[tuple[PlannedShard, Standing]], report: Report) -> None:
        """Log once which batches were created twice, and where to look for the cause."""
        strays = [(shard, batch_id) for shard, standing in shards for batch_id in standing.spare]
        if not strays:
            return
        batches, requests = len(strays), sum(shard.requests for shard, _ in strays)
        host = self.parts.provider.host or "the provider"
        self.parts.warn(
            f"{counted(batches, 'batch')} with {counted(requests, 'request')} {verb(batches, 'was', 'were')} created"
            f" besides the recorded ones, for ${report.spent.stray_cost:,.4f}:"
            f" {', '.join(batch_id for _, batch_id in strays[:_TOLD_STRAYS])}."
            f" Look at what lies between this worker and {host}: a proxy or gateway that repeats a POST"
            " creates each batch twice. Turn its retries off for POST."
        )

    def _about(self, rounds: Sequence[Plan], batch_ids: tuple[str, ...]) -> Provenance:
        first = rounds[0]
        return Provenance(
            run_id=self.folder.run_id,
            run_token=first.run_token,
            provider=first.provider,
            model=first.model,
            key=tuple(first.target.key.names),
            target=first.target.table,
            batch_ids=batch_ids,
            structured=first.routes[0].call.schema is not None,
            result_uri=f"{self.folder.workspace.uri}/{self.folder.path}",
            submitted_at=first.planned_at,
            completed_at=self.parts.clock(),
        )

    def _outlook(self) -> str:
        expected = self.first.dollars
        dollars = "an unknown amount" if expected is None else f"about ${expected:,.4f}"
        requests, rows = counted(self.first.requests, "request"), counted(self.first.rows, "row")
        canary = sum(shard.requests for shard in self.first.canary)
        first = f" {counted(canary, 'request')} would be asked first, as a canary." if canary else ""
        return f"Planned only: {requests} for {rows} would cost {dollars}.{first}"


def _words(landed: Sequence[ShardResult]) -> list[str]:
    """Return the vendor's words about rows of the last round, once for each error code."""
    said = {code: words for one in landed for code, words in one.words.items() if words}
    return [f"{code}: {words}" for code, words in list(said.items())[:_REFUSALS]]


def summed(rounds: Sequence[Plan], landed: Sequence[Sequence[ShardResult]]) -> Report:
    """Add up the shards of each round that have landed. Rows that a later round asks again count there."""
    first = rounds[0]
    unsendable = first.why.get(Reason.UNSENDABLE, 0)
    total = Report(
        why=first.why,
        outcomes={Outcome.ERRORED: unsendable} if unsendable else {},
        codes=first.problems,
    )
    for shards, following in zip(landed, [*rounds[1:], None], strict=True):
        replaced, replaced_codes = _replaced(shards, following)
        summed = sum((one.report for one in shards), Report())
        codes = Counter(summed.codes) - replaced_codes
        total += replace(summed, replaced=replaced, codes=codes)
    return total


def cached(landed: Iterable[tuple[PlannedRoute, Report]]) -> dict[str, tuple[Report, bool]]:
    """Return the routes that have used the vendor's cache, with the sums of their shards, and if they asked for it."""
    totals: dict[str, tuple[Report, bool]] = {}
    for route, report in landed:
        total, asked = totals.get(route.name, (Report(), False))
        totals[route.name] = (total + report, asked or route.call.asks_to_cache)
    return {
        name: one
        for name, one in totals.items()
        if one[0].usage.cached_tokens or one[0].usage.cache_write_tokens
    }


def told_caching(found: Mapping[str, tuple[Report, bool]]) -> dict[str, dict[str, Any]]:
    """Return the report's part about the vendor's cache, by route."""
    return {
        name: caching.reported(total.cache, total.usage, asked=asked)
        for name, (total, asked) in found.items()
    }


def told_packing(rounds: Sequence[Plan], total: Report) -> dict[str, Any]:
    """Return the report's part about packed requests. Empty if there were none."""
    packed = [shard for plan in rounds for shard in plan.shards if shard.packed and not shard.repeats]
    if not packed:
        return {}
    return {
        "rows_per_request": rounds[0].limits.rows_per_request,
        "requests": sum(shard.requests for shard in packed),
        "rows": sum(shard.rows for shard in packed),
        "asked_alone": sum(shard.requests for plan in rounds for shard in plan.shards if not shard.packed),
        "extra_items": total.strange.get(EXTRA_ITEMS, 0),
    }


def _replaced(shards: Sequence[ShardResult], following: Plan | None) -> tuple[Counter[Outcome], Counter[str]]:
    """Return the rows of a round that the next one asks again, by outcome and by error code."""
    if following is None:
        return Counter(), Counter()
    if following.replaces is not None:
        outcomes = {Outcome(name): count for name, count in following.replaces["outcomes"].items()}
        return Counter(outcomes), Counter(following.replaces["codes"])
    # An earlier release asked again every row that was worth it.
    rows: Counter[Outcome] = Counter()
    codes: Counter[str] = Counter()
    for one in shards:
        rows.update(one.again_rows)
        codes.update(one.again_codes)
    return rows, codes


def _batch_ids(shards: Sequence[tuple[PlannedShard, Standing]]) -> tuple[str, ...]:
    return tuple(standing.batch.batch_id for _, standing in shards if standing.batch is not None)


def _fields(about: Provenance) -> dict[str, object]:
    return {name: getattr(about, name) for name in Provenance.__slots__}


def _about(stored: dict[str, Any]) -> Provenance:
    """Read the provenance of a stored report. JSON has lists only, and an earlier release stored more fields."""
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored.items()
        if name in Provenance.__slots__
    }
    return Provenance(**known)


def land_again(parts: Parts, folder: RunFolder) -> int:
    """Make the tables of the run as they were planned and merge all its rounds. Returns the number of answers."""
    if folder.read_report() is None:
        raise InputError(f"The run {folder.path} is not finished. A retry lands it, and sends nothing twice.")
    rounds = list(read_rounds(folder))
    if rounds[0].in_warehouse:
        raise InputError(
            f"The rows of the run {folder.path} were never in its folder, and the warehouse has dropped them since. Ask the"
            " rows again, with only='all'."
        )
    prepare_tables(parts.target, rounds[0].target)
    parts.spool.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parts.spool) as scratch:
        copier = Copier(parts=parts, folder=folder, plan=rounds[0], scratch=Path(scratch))
        copied = copier.copy() if rounds[0].reused else 0
        return copied + sum(_land(parts, folder, plan, Path(scratch)) for plan in rounds)


def _land(parts: Parts, folder: RunFolder, plan: Plan, scratch: Path) -> int:
    memory = RunMemory.of(folder, plan)
    collector = Collector(parts=parts, folder=folder, memory=memory, plan=plan, scratch=scratch)
    current = Round(
        parts=parts, folder=folder, memory=memory, plan=plan, places=0, deadline=0.0, scratch=scratch
    )
    try:
        tallies = [collector.load(shard, standing)[1] for shard, standing in memory.fresh_standings(plan)]
        current.publish()
    finally:
        with parts.cleaning("staged rows"):
            current.drop_loaded()
    return sum(tally.outcomes[Outcome.SUCCEEDED] for tally in tallies)
