"""Decide whether a run packs its requests, asks them alone, or asks a few both ways to find out."""

from dataclasses import replace

from airflow_batch_llm.core.packing import PilotVerdict, compared_columns
from airflow_batch_llm.core.settings import Stage
from airflow_batch_llm.providers.routed import by_route
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.resolved import Resolved, ResolvedRoute
from airflow_batch_llm.stage.records.registers import Registers


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
