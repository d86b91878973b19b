"""`inspect`: a run folder for people."""

import time
from typing import Annotated

import orjson
import typer

from airflow_batch_llm.commands.exit_code import ends_with_a_code, say
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.stage.inspection import (
    Inspected,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show where each shard of a run stands, what will happen next, and what it has cost so far. Writes nothing."""
    with ends_with_a_code():
        workspace, run = open_run_folder(uri)
        found = [inspected(folder, time.time()) for folder in generations(workspace, run)]
    if as_json:
        say(orjson.dumps([one.to_json() for one in found], option=orjson.OPT_INDENT_2).decode())
        return
    say("\n\n".join(_told(one) for one in found))


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
    if run.verdict is not None:
        lines.append(f"  {'Passed' if run.passed else 'Failed'}: {run.verdict}")
    lines.append(f"  Next: {run.next}")
    return "\n".join((*lines, *map(_shard_line, run.shards), *map(_stray_line, run.strays)))


def _shard_line(shard: InspectedShard) -> str:
    batch = ""
    if shard.batch_id is not None and shard.batch_at is not None:
        cancelled = ", cancelled" if shard.cancelled else ""
        batch = f", batch {shard.batch_id} of {moment(shard.batch_at)}{cancelled}"
    cost = "" if shard.cost_usd is None else f", ${shard.cost_usd:,.4f}"
    following = f"; next: {shard.next}" if shard.next else ""
    return (
        f"  round {shard.round} shard {shard.number:04d}: {shard.state}, {counted(shard.requests, 'request')} for"
        f" {counted(shard.rows, 'row')}{batch}{cost}{following}"
    )


def _stray_line(stray: InspectedStray) -> str:
    cost = "at a cost that is not known" if stray.cost_usd is None else f"${stray.cost_usd:,.4f}"
    late = "" if stray.in_report else ", which no report counts"
    return f"  besides shard {stray.shard:04d}: batch {stray.batch_id}, created by accident, {cost}{late}"
