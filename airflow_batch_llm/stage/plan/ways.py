"""Choose how a stage's requests are asked, and refuse a way that the provider does not have before anything is sent.

Whether requests are packed is decided here, too: a run packs them, asks them alone, or asks a few both ways to find out.
"""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from airflow_batch_llm.core.caching import SharedPart, decide
from airflow_batch_llm.core.estimate import BYTES_PER_TOKEN, Estimate
from airflow_batch_llm.core.model import Caching, Call, Way
from airflow_batch_llm.core.packing import PilotVerdict, compared_columns
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.core.settings import Canary, Stage, StageWay
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.base import AnswersNow, MarksPrefixes, Provider
from airflow_batch_llm.providers.routed import by_route
from airflow_batch_llm.stage.learning import Learning
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.resolved import Resolved, ResolvedRoute
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.registers import Registers

#: From this many requests on, a batch is worth its wait.
WORTH_A_BATCH = 100


def check_way(way: StageWay, provider: Provider, call: Call) -> None:
    """Raise `InputError` if the provider cannot be asked this way."""
    if way in (StageWay.BATCH, StageWay.AUTO):
        return
    if not isinstance(provider, AnswersNow):
        raise InputError(
            f"The provider {provider.name} cannot be asked in real time. Leave out way={way.value!r}."
        )
    if way is StageWay.FLEX and (problem := provider.flex_problem(call)):
        raise InputError(f"way='flex': {problem}")


def check_same_execution(stage: Stage, plan: Plan, path: str) -> None:
    """Raise `InputError` if another run that buys rows has them where those of this stage are not."""
    if plan.execution is not stage.execution:
        raise InputError(
            f"The unfinished run {path} asks rows of this target with execution={plan.execution.value!r}, and they cannot be"
            f" compared with those of execution={stage.execution.value!r}. Nothing was sent. Run the task again when that run"
            " has ended."
        )


def flex_problem(provider: Provider, call: Call) -> str | None:
    """Say why this call cannot be asked in real time at half the price. None if it can be."""
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
    """Return the stage with routes whose requests ask the vendor to cache what they share, where that is to pay.

    `requests` holds the number of rows of each route that are to be sent. A pilot does as the route whose rows it repeats.
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

    A run that asks for packing under a new spec measures it first. What it finds counts from the next run on.
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
