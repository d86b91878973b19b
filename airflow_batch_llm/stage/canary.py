"""Judge the canary of a run once. Every worker and every retry follows the stored verdict."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_batch_llm.core.canary import (
    CanaryVerdict,
    RestOfRoute,
    RouteSample,
    Ruling,
    beyond_budget,
    judge_answers,
    over_budget,
)
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.core.report import Report, Verdict
from airflow_batch_llm.stage.budgets import Budgets
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.standings import ShardResult, read_judged, read_landed, ruled

#: Numbers of an estimate that a measured one does not have: the low end and the high end.
_ENDS = frozenset({"usd_low", "usd_high", "usd_likely"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryJudge:
    """Judges the canary of one run, once all of its shards are staged."""

    folder: RunFolder
    plan: Plan
    """The first round as it was frozen."""

    def judge(self, parts: Parts) -> Plan:
        """Store the verdict, unless there is one already, and return the plan that counts from now on."""
        if self.folder.read_canary() is None:
            budgets = Budgets(parts=parts, folder=self.folder)
            verdict = self._verdict(*self._most(budgets))
            while verdict.goes and self.plan.budgets:
                dollars = ruled(self.plan, verdict).dollars or 0.0
                if budgets.keep(self.plan.budgets, dollars):
                    break
                # Other runs have taken the dollars that were left.
                most, shared = self._most(budgets)
                verdict = self._verdict(min(most or 0.0, 0.99 * dollars), shared)
            if self.folder.create_canary(verdict.to_json()) and verdict.goes:
                parts.log(self._told(verdict))
        return read_judged(self.folder, self.plan)

    def reported(self) -> dict[str, Any]:
        """Return the canary and its verdict for the report, or an empty dict if there is no verdict."""
        verdict = self._stored()
        if verdict is None:
            return {}
        counts = ruled(self.plan, verdict)
        forecast = self.plan.measured(verdict.estimates).forecast()
        return {
            **verdict.asked,
            "ruling": verdict.ruling.value,
            "not_sent": self.plan.requests - counts.requests,
            "estimate": {name: number for name, number in forecast.items() if name not in _ENDS},
        }

    def stop(self) -> Verdict | None:
        """Return the verdict on a run that its canary has ended, or None if the run goes on."""
        verdict = self._stored()
        if verdict is None or verdict.goes:
            return None
        found = verdict.why or self._answers(self._landed()).reason
        rest = self.plan.requests - self.plan.stopped().requests
        told = f"{counted(rest, 'further request')} {verb(rest, 'was', 'were')} not sent."
        return Verdict(passed=False, reason=f"The canary has ended the run. {found} {told}")

    def _stored(self) -> CanaryVerdict | None:
        data = self.folder.read_canary() if self.plan.canary else None
        return None if data is None else CanaryVerdict.from_json(data)

    def _most(self, budgets: Budgets) -> tuple[float | None, str]:
        """Return the dollars that the run may cost, and the shared budget that sets them.

        Its name is empty for the run's own limit.
        """
        own, shared = self.plan.limits.max_cost_usd, budgets.most(self.plan.budgets)
        if shared is None or (own is not None and own <= shared[0]):
            return own, ""
        return shared

    def _verdict(self, most: float | None, shared: str) -> CanaryVerdict:
        landed = self._landed()
        total = _total(landed.values())
        samples = self._samples(landed)
        estimates: dict[int, Mapping[str, Any]] = {}
        for number, sample in samples.items():
            asked, rest = sample.estimates()
            estimates |= {len(self._own) + number: asked, number: rest}
        why = over_budget(list(samples.values()), self._unmeasured(samples), most, shared)
        left_out: tuple[int, ...] = ()
        ruling = Ruling.OVER_BUDGET if why else Ruling.GO
        if why and self.plan.sends_what_fits:
            left_out = self._left_out(samples, total.spent.cost, most)
            if len(left_out) < len(self.plan.shards) - len(self.plan.canary):
                ruling = Ruling.GO
        if not self._answers(landed).passed:
            ruling, why = Ruling.BAD_ANSWERS, ""
        if ruling is not Ruling.GO:
            left_out = ()
        items = sum(shard.items for shard in self.plan.canary)
        return CanaryVerdict(
            ruling=ruling, why=why, asked=_asked(total, items), estimates=estimates, left_out=left_out
        )

    def _left_out(
        self, samples: Mapping[int, RouteSample], spent: float, most: float | None
    ) -> tuple[int, ...]:
        """Return the shards beyond the budget. The stage's own route, the first, comes last."""
        rests = []
        for number in (*self._own[1:], 0):
            route = self.plan.routes[number]
            part, paid = route.part(1), samples[number].cost if number in samples else 0.0
            rest = RestOfRoute(
                shards=[(shard.number, shard.items) for shard in self.plan.shards if shard.route == number],
                per_request=samples[number].per_request if number in samples else part and part["expected"],
                left=None if route.max_cost_usd is None else route.max_cost_usd - paid,
            )
            rests.append(rest)
        return beyond_budget(rests, None if most is None else most - spent)

    def _landed(self) -> dict[int, ShardResult]:
        return {shard.number: read_landed(self.folder, shard.number) for shard in self.plan.canary}

    def _answers(self, landed: Mapping[int, ShardResult]) -> Verdict:
        limits = self.plan.limits
        given = limits.canary.min_success_ratio if limits.canary is not None else None
        ratio = limits.min_success_ratio if given is None else given
        samples = [key for one in landed.values() for key in one.samples]
        return judge_answers(_total(landed.values()), ratio, samples)

    @property
    def _own(self) -> range:
        """The numbers of the stage's own routes, without the canary's."""
        return range(sum(route.is_own for route in self.plan.routes))

    def _samples(self, landed: Mapping[int, ShardResult]) -> dict[int, RouteSample]:
        """Return the measures of each route, by its number."""
        samples = {}
        for number in self._own:
            of_canary = len(self._own) + number
            shards = [shard.number for shard in self.plan.canary if shard.route == of_canary]
            if not shards:
                continue
            route, total = self.plan.routes[number], _total(landed[shard] for shard in shards)
            samples[number] = RouteSample(
                name=route.name,
                asked=self.plan.items_by(of_canary),
                usage=total.usage,
                cost=total.spent.cost,
                unpriced=total.spent.unpriced,
                prices=PriceList.of(
                    self.plan.vendor(route),
                    route.call.model,
                    self.plan.limits.prices,
                    at=self.plan.planned_at,
                ),
                ways=(self.plan.routes[of_canary].way, route.way),
                rest=self.plan.items_by(number),
                max_cost_usd=route.max_cost_usd,
                is_packed=route.rows_per_request > 1,
            )
        return samples

    def _unmeasured(self, samples: Mapping[int, RouteSample]) -> float:
        parts = [
            self.plan.routes[number].part(self.plan.items_by(number))
            for number in self._own
            if number not in samples
        ]
        return float(sum(part["expected"] or 0.0 for part in parts if part is not None))

    def _told(self, verdict: CanaryVerdict) -> str:
        """Say for people that the rest is sent, and its expected cost."""
        counts = ruled(self.plan, verdict)
        before, after = self.plan.dollars, counts.dollars
        cost = "an unknown amount" if after is None else f"about ${after:,.4f}"
        guess = "" if before is None else f" instead of ${before:,.4f}"
        return (
            f"The canary has passed. {self._answers(self._landed()).reason} It cost ${verdict.asked['usd']:,.4f}. By its"
            f" tokens the run takes {cost}{guess}. {self._sent(verdict, counts)}"
        )

    def _sent(self, verdict: CanaryVerdict, counts: Plan) -> str:
        if not verdict.left_out:
            return "The rest is sent."
        rows = self.plan.rows - counts.rows
        left = f"{counted(rows, 'row')} {verb(rows, 'is', 'are')} left to the next run"
        return f"The rest is sent as far as it fits, and {left}. {verdict.why}"


def _total(landed: Iterable[ShardResult]) -> Report:
    return sum((one.report for one in landed), Report())


def _asked(total: Report, items: int) -> dict[str, float]:
    """Return the canary in numbers."""
    # The cost of a packed request is divided among its items, so the unpriced are items.
    requests = max(1.0, total.requests * (1 - total.spent.unpriced / max(1, items)))
    return {
        "rows": total.rows,
        "succeeded": total.final.get(Outcome.SUCCEEDED, 0),
        "requests": total.requests,
        "input_tokens": round(total.usage.input_tokens / requests, 1),
        "output_tokens": round(total.usage.output_tokens / requests, 1),
        "usd": round(total.spent.cost, 6),
    }
