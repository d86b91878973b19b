"""Commands about one run folder: `inspect` it, `cancel` what still runs, and `land` a finished run once more."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from airflow_batch_llm.commands.exit_code import ends_with_a_code, say, this_user
from airflow_batch_llm.commands.spec import (
    Opening,
    ProviderSection,
    open_others,
    open_provider,
    read_provider,
    read_providers,
    read_spec,
)
from airflow_batch_llm.core.printing import counted, share, verb
from airflow_batch_llm.core.spec import Spec
from airflow_batch_llm.errors import BatchLLMError, InputError
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access, Provider
from airflow_batch_llm.providers.routed import routed
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
from airflow_batch_llm.stage.land.finishing import land_again
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder, generations
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.send.sweeping import Cancelled, cancel_run
from airflow_batch_llm.stage.tidying import private_spool


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
            say(_json(audits) if as_json else "\n\n".join(map(_audit_told, audits)))
            return
        found = [inspected(folder, time.time()) for folder in generations(workspace, run)]
    say(_json(found) if as_json else "\n\n".join(map(_run_told, found)))


def _json(found: Sequence[Inspected | Audit]) -> str:
    return orjson.dumps([one.to_json() for one in found], option=orjson.OPT_INDENT_2).decode()


def _audit_told(run: Audit) -> str:
    """Describe an audit for people, without any row, prompt, answer or key."""
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
        return "a user or a task that an earlier release did not record"
    task = "/".join(str(by[name]) for name in ("dag_id", "task_id", "run_id") if name in by)
    index = f" [{by['map_index']}]" if "map_index" in by else ""
    tries = f" try {by['try_number']}" if "try_number" in by else ""
    conn = f" with connection {by['conn_id']}" if "conn_id" in by else ""
    who = f"{task}{index}{tries}{conn}" or by.get("user", "")
    return " ".join(filter(None, (who, f"on {by['host']}" if "host" in by else "")))


def _outcomes(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items()) or "not landed yet"


def _run_told(run: Inspected) -> str:
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
    for name, one in run.caching.items():
        result = f"won ${one['won_usd']:,.4f}" if one["won_usd"] >= 0 else f"lost ${-one['won_usd']:,.4f}"
        read = f"{one['hit_rate']:.1%} of the answers read from the vendor's cache, which {result}"
        lines.append(f"  Caching by the route {name}: {read}.")
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


def cancel(
    uri: Annotated[
        str, typer.Argument(metavar="RUN_FOLDER", help="Path or URI: <workspace>/<dag>/<task>/<run>.")
    ],
    spec_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SPEC.YAML]",
            help="A file with the provider section of a spec. Without it, the SDK's own environment variables count.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Cancel every batch of a run that is still running at the provider, and what a worker asks in real time.

    Answers until then are paid, and land when the run is resumed, which ends it. The other rows end as canceled, and
    are asked again after a clear, or with `run --again`.

    Exit codes: 0 no batch runs on unasked, 2 something must be changed first, 3 the same command may succeed later.
    """
    with ends_with_a_code():
        workspace, run = open_run_folder(uri)
        folders = list(generations(workspace, run))
        plan = Plan.from_json(folders[-1].read_plan() or b"")
        section = ProviderSection() if spec_file is None else read_provider(spec_file)
        sections = {} if spec_file is None else read_providers(spec_file)
        own = open_provider(plan.provider, section, os.environ)
        with closing(routed(own, open_others(plan.others, sections, os.environ))) as provider:
            _check_host(plan, provider)
            cancelled = cancel_run(RunFolder(workspace=workspace, run=run), provider, this_user())
        seen = [inspected(folder, time.time()) for folder in folders]
    say(_cancelled_json(run, cancelled, seen) if as_json else _cancelled_told(run, cancelled, seen))


def _check_host(plan: Plan, provider: Provider) -> None:
    """Refuse to ask another server than the one that has the batches: it would not know them."""
    planned = Spec.from_json(plan.spec).host
    if provider.host != planned:
        raise InputError(
            f"The batches of this run are at {planned or 'the vendor itself'}, and this command would ask"
            f" {provider.host or 'the vendor itself'}. Name a SPEC.YAML whose provider.base_url leads there."
        )


def _cancelled_told(run: str, cancelled: Cancelled, seen: list[Inspected]) -> str:
    ended = seen[-1].verdict is not None
    spent = sum(one.spent_usd for one in seen)
    lines = []
    if cancelled.now:
        lines.append(f"{run}: {counted(len(cancelled.now), 'batch')} cancelled.")
    if cancelled.asked:
        lines.append(
            f"{run}: {counted(cancelled.asked, 'shard')} asked in real time cancelled. A worker that asks stops within"
            " ten seconds, and keeps the answers to what it has sent."
        )
    if not cancelled.now and not cancelled.asked and ended:
        lines.append(f"{run}: the run has ended, and none of its batches is running.")
    elif not cancelled.now and not cancelled.asked:
        lines.append(f"{run}: no batch is running. The run sends nothing more.")
    if cancelled.before:
        before = len(cancelled.before)
        lines.append(
            f"{counted(before, 'batch')} {verb(before, 'was', 'were')} cancelled before and still"
            f" {verb(before, 'ends', 'end')}."
        )
    if cancelled.requests:
        done = share(cancelled.answered, cancelled.requests, "request")
        lines.append(f"{done} had been processed, as far as the provider says; what was answered is paid.")
    if cancelled.unconfirmed:
        lines.append(_unconfirmed(cancelled.unconfirmed))
    lines.append(f"Landed so far: ${spent:,.4f}. {_outlook(ended=ended)}")
    return "\n".join(lines)


def _unconfirmed(shards: int) -> str:
    return (
        f"{counted(shards, 'shard')} {verb(shards, 'has', 'have')} a creation without a reply, so a batch may exist that"
        " is not known. Resume the run, or look at the provider's console."
    )


def _outlook(*, ended: bool) -> str:
    if ended:
        return "A retry returns the stored report."
    return "A retry lands what was answered and ends the run. A clear, or --again, asks the other rows after that."


def _cancelled_json(run: str, cancelled: Cancelled, seen: list[Inspected]) -> str:
    told: dict[str, Any] = {
        "run": run,
        "ended": seen[-1].verdict is not None,
        "cancelled": len(cancelled.now),
        "cancelled_asking": cancelled.asked,
        "cancelled_before": len(cancelled.before),
        "unconfirmed": cancelled.unconfirmed,
        "requests": cancelled.requests,
        "processed": cancelled.answered,
        "spent_usd": sum(one.spent_usd for one in seen),
        "batches": sorted({*cancelled.now, *cancelled.before}),
    }
    return orjson.dumps(told, option=orjson.OPT_INDENT_2).decode()


def land(
    uri: Annotated[
        str, typer.Argument(metavar="RUN_FOLDER", help="Path or URI: <workspace>/<dag>/<task>/<run>.")
    ],
    spec_file: Annotated[
        Path, typer.Argument(metavar="SPEC.YAML", help="The stage, for the warehouse of its tables.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Merge the answers of a finished run once more, into tables that were dropped or altered since.

    No provider is asked and nothing is paid. What a later run has answered stays as it is.
    """
    with ends_with_a_code(), private_spool() as spool:
        workspace, run = open_run_folder(uri)
        finished = [one for one in generations(workspace, run) if one.read_report() is not None]
        if not finished:
            raise InputError(f"The run {uri} is not finished. A retry lands it, and sends nothing twice.")
        opening = Opening.of(read_spec(spec_file), spec_file)
        landed = []
        for folder in finished:
            landed.append(_land(folder, opening, spool))
            if not as_json:
                say("{run}: {merged} merged into {target}.".format(**landed[-1]))
    if as_json:
        say(orjson.dumps(landed, option=orjson.OPT_INDENT_2).decode())


def _land(folder: RunFolder, opening: Opening, spool: Path) -> dict[str, object]:
    """Land one generation again. Returns a message about it."""
    plan = Plan.from_json(folder.read_plan() or b"")
    target = opening.warehouse(opening.spec.warehouse)
    parts = Parts(
        provider=routed(
            connect(plan.provider, Access()),
            {via: connect(name, Access()) for via, name in plan.others.items()},
        ),  # it reads lines that are here, and needs no key for that
        source=target,
        target=target,
        workspace=folder.workspace,
        spool=spool,
    )
    try:
        answers = land_again(parts, folder)
    finally:
        with suppress(BatchLLMError):  # what was done is done
            target.close()
    return {
        "run": folder.path,
        "target": plan.target.table,
        "answers": answers,
        "merged": counted(answers, "answer"),
    }
