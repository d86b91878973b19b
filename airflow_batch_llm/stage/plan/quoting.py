"""Price the requests of a route before they are sent, and choose how they are asked.

This module also decides whether a run packs its requests, asks them alone, or asks a few both ways to compare. Routes
share a budget in their order.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.core.attachment import AttachmentRules, AttachmentTokens, parted
from airflow_batch_llm.core.caching import CachedRun, SharedPart, decide
from airflow_batch_llm.core.estimate import (
    BYTES_PER_TOKEN,
    Estimate,
    Measured,
    RequestSize,
    estimate,
    of_items,
    usual_packed_answer,
)
from airflow_batch_llm.core.model import Caching, Call, Way
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.packing import PilotVerdict, compared_columns
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.core.settings import Canary, Stage, StageWay
from airflow_batch_llm.errors import BudgetExceeded, InputError, ProviderError
from airflow_batch_llm.providers.base import AnswersNow, MarksPrefixes, Provider
from airflow_batch_llm.providers.routed import by_route
from airflow_batch_llm.stage.learning import Learning
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.resolved import Resolved, ResolvedRoute
from airflow_batch_llm.stage.plan.shard_files import packed_prompts
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.warehouses.arrow import binary_array

#: The provider counts this many prompts, spread over all of them.
SAMPLE = 16
#: The bytes of these requests from which no other is taken.
_SAMPLE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """Makes the estimate of a run."""

    provider: Provider | None
    """The provider that counts tokens. None: tokens are not counted, and the estimate rests on bytes."""
    output_type: OutputType
    route: ResolvedRoute
    way: Way
    measured: Measured | None = None
    """Earlier runs with the same spec. Default: there are none."""
    cached: CachedRun | None = None
    """The use of the vendor's cache by such runs. Default: not known, so none."""

    def estimate(self, prompts: Iterable[pa.BinaryArray], items: int) -> Estimate:
        """Read the prompts once, block by block, and ask the provider to count a few.

        The estimate is that of the items: a request's cost is divided among those that share it.
        """
        rows = self.route.rows_per_request
        total = largest = seen = 0
        attached = AttachmentTokens()
        sample: list[bytes] = []
        every = max(1, items // rows // SAMPLE)
        for block, _ in packed_prompts(prompts, rows):
            if self.route.attachments is not None:
                block, attached = _apart(block, attached, self.route.attachments)
            lengths = pc.binary_length(block)
            total += pc.sum(lengths).as_py() or 0
            largest = max(largest, pc.max(lengths).as_py() or 0)
            for at in range(-seen % every, len(block), every):
                if len(sample) < SAMPLE and sum(map(len, sample)) < _SAMPLE_BYTES:
                    sample.append(block[at].as_py())
            seen += len(block)
        return self.of_size(
            RequestSize(requests=seen, prompt_bytes=total, largest_bytes=largest, attached=attached),
            items,
            sample,
        )

    def of_size(self, known: RequestSize, items: int, sample: list[bytes]) -> Estimate:
        """Estimate requests of this size. The sample are prompts of some of them."""
        rows, seen = self.route.rows_per_request, known.requests
        size = replace(
            known,
            packed=items if rows > 1 else 0,
            rows_per_request=rows,
            sample=self._counted(sample) if self.measured is None else (),
            measured=self.measured,
            cached=None if self.cached is None else self.cached.among(seen),
            shared_bytes=len(self.route.template.pieces[0]) + len(self.route.call.system_prompt or ""),
            attached_assumption=self.route.attachments.assumption if self.route.attachments else "",
            max_tokens=self.route.asked.max_tokens,
            answer_tokens=usual_packed_answer(
                self.output_type, items / seen if seen else 0.0, is_packed=rows > 1
            ),
        )
        return of_items(estimate(self.route.prices.by(self.way), size), items)

    def _counted(self, sample: list[bytes]) -> list[tuple[int, int]]:
        """Count tokens at the provider. If that fails, the estimate rests on bytes and says so."""
        if not sample or self.provider is None:
            return []
        try:
            counts = self.provider.count_tokens(self.route.asked, [orjson.loads(prompt) for prompt in sample])
        except ProviderError:
            return []
        return [(len(prompt), count) for prompt, count in zip(sample, counts or (), strict=False)]


def _apart(
    block: pa.BinaryArray, attached: AttachmentTokens, rules: AttachmentRules
) -> tuple[pa.BinaryArray, AttachmentTokens]:
    """Return the prompts without their attachments, and the tokens with those of their attachments."""
    texts = []
    for prompt in block:
        text, attachments = parted(prompt.as_py())
        texts.append(orjson.dumps(text))
        attached = attached.plus(attachments, rules)
    return binary_array(texts), attached


def affordable(guess: Estimate, most: float | None) -> int:
    """Return the number of requests, in source order, that the budget allows."""
    if most is None or math.isinf(most) or not guess.requests:
        return guess.requests
    if guess.per_request is None:
        raise BudgetExceeded(
            f"The cost cannot be estimated, so max_cost_usd={most:g} cannot be kept. {' '.join(guess.assumptions)}"
            " Or allow any cost with max_cost_usd=float('inf'), in a spec file null. Nothing was sent."
        )
    if not guess.per_request:
        return guess.requests
    return min(guess.requests, int(Decimal(str(most)) / guess.per_request))


def shared_out(guesses: Sequence[Estimate], most: float | None, caps: Sequence[float | None]) -> list[int]:
    """Return the number of requests of each route that the budget allows. The stage's own route, the first, comes last."""
    allowed = [0] * len(guesses)
    left = None if most is None or math.isinf(most) else Decimal(str(most))
    for number in (*range(1, len(guesses)), 0):
        limits = [float(one) for one in (left, caps[number]) if one is not None]
        allowed[number] = affordable(guesses[number], min(limits, default=None))
        if left is not None:
            left = max(Decimal(0), left - allowed[number] * (guesses[number].per_request or 0))
    return allowed


def over_budget(
    routes: Sequence[ResolvedRoute], guesses: Sequence[Estimate], surcharge: Decimal, what: str
) -> str:
    """Say which budget is too small: that of a route, or that of the run, whose name is `what`."""
    requests, whose = sum(guess.requests for guess in guesses), ""
    expected = sum((guess.expected or Decimal(0) for guess in guesses), surcharge)
    for route, guess in zip(routes, guesses, strict=True):
        if shared_out([guess], route.max_cost_usd, [None]) != [guess.requests]:
            requests, expected = guess.requests, guess.expected or Decimal(0)
            whose = f" of the route {route.name}"
            what = f"the route's max_cost_usd={route.max_cost_usd:g}"
            break
    noun = "item" if routes[0].rows_per_request > 1 else "request"
    return (
        f"{counted(requests, noun)}{whose} {verb(requests, 'is', 'are')} estimated at ${expected:,.4f}, above"
        f" {what}. Nothing was sent. Raise max_cost_usd or the budget, lower max_rows, or set"
        " on_over_budget='partial' to send what fits."
    )


#: The number of requests from which a batch is worth its wait.
WORTH_A_BATCH = 100


def check_same_execution(stage: Stage, plan: Plan, path: str) -> None:
    """Raise `InputError` if another run that buys rows has another `execution` than this stage."""
    if plan.execution is not stage.execution:
        raise InputError(
            f"The unfinished run {path} asks rows of this target with execution={plan.execution.value!r}, and they cannot be"
            f" compared with those of execution={stage.execution.value!r}. Nothing was sent. Run the task again when that run"
            " has ended."
        )


def flex_problem(provider: Provider, call: Call) -> str | None:
    """Say why this call cannot be asked in real time at half the price. Returns None if it can."""
    if not isinstance(provider, AnswersNow):
        return f"The provider {provider.name} cannot be asked in real time."
    return provider.flex_problem(call)


def choose_way(asked: StageWay, requests: int, problem: str | None) -> tuple[Way, str]:
    """Return the way for this many requests, and why it is chosen: "" if the stage names it.

    `problem` says why the half-price tier cannot be asked.
    """
    if asked is not StageWay.AUTO:
        return Way(asked.value), ""
    found = f"way='auto': {counted(requests, 'request')}"
    if requests >= WORTH_A_BATCH:
        return Way.BATCH, f"{found}, by batch, since there are {WORTH_A_BATCH} or more."
    if problem is not None:
        return Way.BATCH, f"{found}, by batch, since flex is not possible. {problem}"
    return Way.FLEX, f"{found}, by flex, since there are fewer than {WORTH_A_BATCH}."


def canary_size(canary: Canary | None, requests: int) -> tuple[int, str]:
    """Return the number of requests that are asked before the others, and the reason if there are none: "" if none are wanted."""
    if canary is None or not requests:
        return 0, ""
    if requests >= 2 * canary.rows:
        return canary.rows, ""
    sent = f"{counted(requests, 'request')} {verb(requests, 'is', 'are')} sent"
    return 0, f"No canary: {sent}, fewer than twice the {canary.rows:,} of a canary."


def canary_way(canary: Canary | None, provider: Provider) -> StageWay:
    """Return the way in which a canary is asked."""
    if canary is not None and canary.way is not None:
        return canary.way
    return StageWay.NOW if isinstance(provider, AnswersNow) else StageWay.BATCH


def canary_surcharge(canary: Canary | None, ways: Sequence[Way], guesses: Sequence[Estimate]) -> Decimal:
    """Return the most dollars by which a canary in real time is dearer than the ways of the routes."""
    if canary is None or canary.way not in (None, StageWay.NOW):
        return Decimal(0)
    prices = [guess.per_request for way, guess in zip(ways, guesses, strict=True) if way is not Way.NOW]
    return canary.rows * max((price for price in prices if price is not None), default=Decimal(0))


def with_cache(
    resolved: Resolved, parts: Parts, choice: Caching, ways: Sequence[Way], requests: Sequence[int]
) -> Resolved:
    """Return the stage with routes whose requests ask the vendor to cache their shared part, if that is expected to pay.

    `requests` holds the number of rows of each route that are to be sent. A pilot follows the route whose rows it repeats.
    """
    routes = tuple(
        _with_cache(route, parts, choice, way, rows)
        for route, way, rows in zip(resolved.routes, ways, requests, strict=True)
    )
    pilot, how = resolved.pilot, routes[0].call.cache_system_prompt
    if pilot is not None:
        pilot = pilot.caching(by_route(parts.provider, pilot.call.via), how)
    return replace(resolved, routes=routes, pilot=pilot)


def _with_cache(route: ResolvedRoute, parts: Parts, choice: Caching, way: Way, rows: int) -> ResolvedRoute:
    provider = by_route(parts.provider, route.call.via)
    part = SharedPart(
        tokens=len((route.call.system_prompt or "").encode(errors="replace")) / BYTES_PER_TOKEN,
        least=provider.least_cached(route.asked) if isinstance(provider, MarksPrefixes) else None,
        requests=-(-rows // route.rows_per_request),
        way=way,
    )
    last = Learning(parts=parts).last_runs(route.spec_hash, way)
    decision = decide(choice, part, route.prices.by(way).cache_factors, last)
    if decision.why and rows:
        (parts.warn if decision.warns else parts.log)(decision.why)
    return route.caching(provider, decision.how)


def settled(resolved: Resolved, stage: Stage, parts: Parts) -> Resolved:
    """Return the stage as it is asked: packed, alone, or alone with a pilot for the stage's own route.

    A run that asks for packing under a new spec measures it first. The result counts from the next run on.
    """
    rows, limit = stage.request.rows_per_request, stage.guards.min_agreement
    if rows == 1 or limit is None:
        return resolved
    if not compared_columns(resolved.output_type):
        parts.log(
            "The requests are packed without a pilot: no column of the answer has values that can be compared."
        )
        return resolved
    data = Registers(workspace=parts.workspace).packing(resolved.own.spec_hash, rows)
    alone = replace(resolved, routes=tuple(_alone(route, parts) for route in resolved.routes))
    if data is None:
        parts.log(
            f"rows_per_request={rows}: this run asks each row alone, and some packed as well, to compare the answers."
        )
        return replace(alone, pilot=resolved.own)
    verdict = PilotVerdict.from_json(data)
    if min(verdict.agreement.values()) >= limit:
        return resolved
    parts.warn(
        f"rows_per_request={rows} is off for this spec, below min_agreement={limit:g}: {verdict.told} Each row is asked alone."
    )
    return alone


def _alone(route: ResolvedRoute, parts: Parts) -> ResolvedRoute:
    template = by_route(parts.provider, route.call.via).encode(route.call)
    return replace(route, asked=route.call, template=template, rows_per_request=1, answer_cap=None)
