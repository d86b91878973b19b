"""`cancel`: end what a run still has running at its provider."""

import os
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from airflow_batch_llm.commands.exit_code import ends_with_a_code, say, this_user
from airflow_batch_llm.commands.opening import open_others, open_provider
from airflow_batch_llm.commands.spec import ProviderSection, read_provider, read_providers
from airflow_batch_llm.core.printing import counted, share, verb
from airflow_batch_llm.core.spec import Spec
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.providers.routed import routed
from airflow_batch_llm.stage.inspection import Inspected, inspect, open_run_folder
from airflow_batch_llm.stage.records.folder import RunFolder, generations
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.send.sweeping import Cancelled, cancel_run


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
        seen = [inspect(folder, time.time()) for folder in folders]
    say(_as_json(run, cancelled, seen) if as_json else _told(run, cancelled, seen))


def _check_host(plan: Plan, provider: Provider) -> None:
    """Refuse to ask another server than the one that has the batches: it would not know them."""
    planned = Spec.from_json(plan.spec).host
    if provider.host != planned:
        raise InputError(
            f"The batches of this run are at {planned or 'the vendor itself'}, and this command would ask"
            f" {provider.host or 'the vendor itself'}. Name a SPEC.YAML whose provider.base_url leads there."
        )


def _told(run: str, cancelled: Cancelled, seen: list[Inspected]) -> str:
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


def _as_json(run: str, cancelled: Cancelled, seen: list[Inspected]) -> str:
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
