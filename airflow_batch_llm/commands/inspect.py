"""`inspect`: a run folder for people."""

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import orjson
import typer

from airflow_batch_llm.commands.exit_code import ends_with_a_code, say
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.stage.audit import Audit, audit
from airflow_batch_llm.stage.inspection import (
    Inspected,
    InspectedRoute,
    InspectedShard,
    InspectedStray,
    moment,
    open_run_folder,
)
from airflow_batch_llm.stage.inspection import inspect as inspected
from airflow_batch_llm.stage.records.folder import generations


def inspect(
    uri: Annotated[
        str, typer.Argument(metavar="RUN_FOLDER", help="Path or URI: <workspace>/<dag>/<task>/<run>.")
    ],
    as_audit: Annotated[
        bool, typer.Option("--audit", help="Show who sent what to the provider, and how it ended.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show where each shard of a run stands, what will happen next, and what it has cost so far. Writes nothing."""
    with ends_with_a_code():
        workspace, run = open_run_folder(uri)
        if as_audit:
            audits = [audit(folder) for folder in generations(workspace, run)]
            say(_as_json(audits) if as_json else "\n\n".join(map(_audit_told, audits)))
            return
        found = [inspected(folder, time.time()) for folder in generations(workspace, run)]
    say(_as_json(found) if as_json else "\n\n".join(map(_told, found)))


def _as_json(found: Sequence[Inspected | Audit]) -> str:
    return orjson.dumps([one.to_json() for one in found], option=orjson.OPT_INDENT_2).decode()


def _audit_told(run: Audit) -> str:
    """For people. It holds no row, prompt, answer or key."""
    lines = [
        f"{run.path}: {run.provider}:{run.model} at {run.host or 'the vendor'}, into {run.target}",
        f"  {moment(run.planned_at)} planned by {_doer(run.planned_by)}: {counted(run.rows, 'row')}",
    ]
    for batch in run.batches:
        spare = "spare " if batch.is_spare else ""
        lines.append(
            f"  {moment(batch.sent_at)} {spare}batch {batch.batch_id} (round {batch.round}, shard {batch.shard:04d}) sent"
            f" by {_doer(batch.sent_by)}: {counted(batch.requests, 'request')} for {counted(batch.rows, 'row')},"
            f" {batch.bytes:,} bytes, sha256 {batch.requests_sha256}"
        )
        if batch.ended_at is not None:
            lines.append(
                f"  {moment(batch.ended_at)} batch {batch.batch_id} ended, as seen by {_doer(batch.ended_by)}:"
                f" {_outcomes(batch.outcomes)}"
            )
        if batch.deleted_at is not None:
            lines.append(f"  {moment(batch.deleted_at)} batch {batch.batch_id} deleted at the vendor")
    lines += [
        f"  {moment(refusal.at)} shard {refusal.shard:04d} not taken, as told to {_doer(refusal.by)}: {refusal.reason}"
        for refusal in run.refusals
    ]
    lines += [
        f"  {moment(one.at)} cancelled by {_doer(one.by)}: {', '.join(one.batches)}"
        for one in run.cancellations
    ]
    if run.ended_at is not None:
        verdict = "passed" if run.passed else "failed"
        lines.append(
            f"  {moment(run.ended_at)} {verdict}: {_outcomes(run.outcomes)}, ${run.cost_usd or 0.0:,.4f}"
        )
    return "\n".join(lines)


def _doer(by: Mapping[str, Any]) -> str:
    if not by:
        return "somebody whom an earlier release did not record"
    task = "/".join(str(by[name]) for name in ("dag_id", "task_id", "run_id") if name in by)
    index = f" [{by['map_index']}]" if "map_index" in by else ""
    tries = f" try {by['try_number']}" if "try_number" in by else ""
    conn = f" with connection {by['conn_id']}" if "conn_id" in by else ""
    who = f"{task}{index}{tries}{conn}" or by.get("user", "")
    return " ".join(filter(None, (who, f"on {by['host']}" if "host" in by else "")))


def _outcomes(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items()) or "not landed yet"


def _told(run: Inspected) -> str:
    expected = "" if run.estimated_usd is None else f", of about ${run.estimated_usd:,.4f} estimated"
    deadline = "" if run.deadline is None else f" Its time ends at {moment(run.deadline)}."
    why = ", ".join(f"{count:,} {reason}" for reason, count in run.why.items() if count)
    database = (
        "not recorded, since an earlier release has planned the run" if run.database is None else run.database
    )
    lines = [
        f"{run.path}: {run.provider}:{run.model} into {run.target}",
        f"  Database: {database}. Deployment: {run.deployment or 'the only one'}.",
        f"  Planned at {moment(run.planned_at)}.{deadline}",
        f"  Rows: {why or 'none'}.",
        f"  Spent so far: ${run.spent_usd:,.4f}{expected}.",
    ]
    if run.canary:
        lines.append(f"  Canary: {run.canary.replace('_', ' ')}.")
    if run.rows_per_request > 1:
        lines.append(f"  Packed: a request asks about at most {counted(run.rows_per_request, 'row')}.")
    if run.caching:
        won, hits = run.caching["won_usd"], run.caching["hit_rate"]
        result = f"won ${won:,.4f}" if won >= 0 else f"lost ${-won:,.4f}"
        lines.append(f"  Caching: {hits:.1%} of the answers read from the vendor's cache, which {result}.")
    if run.verdict is not None:
        lines.append(f"  {'Passed' if run.passed else 'Failed'}: {run.verdict}")
    lines.append(f"  Next: {run.next}")
    lines += map(_route_line, run.routes)
    lines += [_shard_line(shard, is_routed=bool(run.routes)) for shard in run.shards]
    return "\n".join((*lines, *map(_stray_line, run.strays)))


def _route_line(route: InspectedRoute) -> str:
    return (
        f"  Route {route.name} ({route.model}, {route.way}): {counted(route.requests, 'request')},"
        f" {counted(route.succeeded, 'row')} answered, ${route.cost_usd:,.4f}"
    )


def _shard_line(shard: InspectedShard, *, is_routed: bool) -> str:
    batch = ""
    if shard.batch_id is not None and shard.batch_at is not None:
        cancelled = ", cancelled" if shard.cancelled else ""
        batch = f", batch {shard.batch_id} of {moment(shard.batch_at)}{cancelled}"
    cost = "" if shard.cost_usd is None else f", ${shard.cost_usd:,.4f}"
    following = f"; next: {shard.next}" if shard.next else ""
    route = f", route {shard.route} ({shard.way})" if is_routed else ""
    return (
        f"  round {shard.round} shard {shard.number:04d}{route}: {shard.state}, {counted(shard.requests, 'request')} for"
        f" {counted(shard.rows, 'row')}{batch}{cost}{following}"
    )


def _stray_line(stray: InspectedStray) -> str:
    cost = "at a cost that is not known" if stray.cost_usd is None else f"${stray.cost_usd:,.4f}"
    late = "" if stray.in_report else ", which no report counts"
    return f"  besides shard {stray.shard:04d}: batch {stray.batch_id}, created by accident, {cost}{late}"
