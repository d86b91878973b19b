"""From raw result lines to one judged answer per request of a shard.

Lines come in any order, twice, for strangers, or broken. Each costs at most its own row; a request that no line
mentions is `missing`, or what the end of its batch says. What is held is one shard's answers, never the table's.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from airflow_batch_llm.core.answer import AnswerParser
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.stage.judged import Judged, Verdict
from airflow_batch_llm.stage.judging import Foreign, LineJudge
from airflow_batch_llm.stage.plan import Plan


@dataclass(slots=True, kw_only=True)
class Gathered:
    """The judged requests of a shard, and what served nobody."""

    judged: Judged
    token: str = ""  # the shard's: each of its requests bears it
    strange: Counter[str] = field(default_factory=Counter)  # lines, by kind
    stray_cost: float = 0.0  # of answers that served nobody, since another batch had given them
    batches: list[str] = field(default_factory=list)  # that were read


@dataclass(frozen=True, slots=True, kw_only=True)
class Gatherer:
    """Gathers the verdicts on the lines of a plan's shards."""

    lines: LineJudge

    @classmethod
    def of(cls, provider: Provider, plan: Plan) -> "Gatherer":
        """The prices are those of the day of the plan, on which its budget was judged."""
        return cls(
            lines=LineJudge(
                provider=provider,
                parser=AnswerParser.of(OutputType.from_json(plan.output_type)),
                prices=PriceList.of(plan.provider, plan.model, plan.limits.prices, at=plan.planned_at),
            )
        )

    def gather(
        self,
        batches: Iterable[tuple[str, Iterable[bytes]]],
        *,
        token: str,
        requests: int,
        unmentioned: Outcome = Outcome.MISSING,
    ) -> Gathered:
        """Judge the lines of a shard's batches, the recorded one first. The first good line of a request wins."""
        gathered = Gathered(judged=Judged.alike(requests, unmentioned), token=token)
        for batch_id, lines in batches:
            gathered.batches.append(batch_id)
            for line in lines:
                self._take(line, batch_id, gathered)
        return gathered

    def _take(self, line: bytes, batch_id: str, gathered: Gathered) -> None:
        judged = gathered.judged
        try:
            verdict = self.lines.judge(line, gathered.token, len(judged))
        except Foreign:
            gathered.strange["foreign_lines"] += 1
            return
        if verdict is None or not verdict.is_readable:
            gathered.strange["unreadable_lines"] += 1
        if verdict is None:
            return
        if judged.batch_ids[verdict.request] is None or _serves(verdict, batch_id, gathered):
            judged.put(verdict, batch_id)


def _serves(verdict: Verdict, batch_id: str, gathered: Gathered) -> bool:
    """Whether a second line takes the place of the first.

    One of the same batch is the provider's slip. One of another batch was bought: the worse of both was for nothing.
    """
    judged, request = gathered.judged, verdict.request
    better = judged.outcomes[request] is not Outcome.SUCCEEDED and verdict.outcome is Outcome.SUCCEEDED
    gathered.strange["duplicate_lines"] += 1
    if batch_id != judged.batch_ids[request]:
        useless = judged.bills[request] if better else verdict.bill
        gathered.stray_cost += useless.cost or 0.0
    return better
