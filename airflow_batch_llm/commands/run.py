"""`run`: the stage of a file, from its first row to its report; and `estimate`, which sends nothing.

The same `run` after a crash goes on where the run folder says that it was, and after its end reads the report.
"""

import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from airflow_batch_llm.commands.exit_code import ends_with_a_code, say, this_user
from airflow_batch_llm.commands.spec import Opening, read_spec
from airflow_batch_llm.commands.spending import configured_budgets
from airflow_batch_llm.core.attachment import with_names
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.core.report import to_xcom
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.stage.drive import Progress, complete
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.planning import Planner
from airflow_batch_llm.stage.records.folder import RunFolder, generations, run_path
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.run import Run, own_name
from airflow_batch_llm.stage.tidying import private_spool
from airflow_batch_llm.store import Workspace

#: Where runs of this command lie in a workspace: apart from the Dags, and from the registers.
_RUNS = "runs"


def run(
    spec_file: Annotated[
        Path, typer.Argument(metavar="SPEC.YAML", help="The stage: see how-to/cli in the docs.")
    ],
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="See what would be sent and cost; send nothing.")
    ] = False,
    again: Annotated[
        bool,
        typer.Option("--again", help="Read the source again, after an unfinished run has been finished."),
    ] = False,
    retry_dead: Annotated[
        bool, typer.Option("--retry-dead", help="Like --again, and ask dead rows again, too.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--run", help="The run's name, instead of the spec's own.")
    ] = None,
    deployment: Annotated[
        str | None,
        typer.Option("--deployment", help="The name of this deployment among those of the workspace."),
    ] = None,
    progress: Annotated[bool, typer.Option("--progress", help="Show a progress bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Ask a model about each row and merge the answers into a table.

    Exit codes: 0 done, 1 too few rows or too little of the canary succeeded, or the time is over, 2 something must be changed
    first, 3 the same command may succeed later.
    """
    with ends_with_a_code(), private_spool() as spool:
        given = {
            field: value for field, value in (("run", name), ("deployment", deployment)) if value is not None
        }
        opening = Opening.of(read_spec(spec_file).model_copy(update=given), spec_file)
        planned = open_run(opening, spec_file.stem, spool, plan_only=plan_only)
        if retry_dead and planned.stage is not None:
            guards = replace(planned.stage.guards, retry_dead=True)
            planned = replace(planned, stage=replace(planned.stage, guards=guards))
        finished = driven(ready(planned, again=again or retry_dead), progress=progress)
        say(_as_json(finished) if as_json else _told(finished))
        finished.raise_for_verdict()


def open_run(opening: Opening, stem: str, spool: Path, *, plan_only: bool) -> Run:
    """Put the parts of a spec's run together, without a connection."""
    stage = opening.stage(plan_only=plan_only)
    target = opening.warehouse(opening.spec.warehouse)
    parts = Parts(
        provider=opening.provider(),
        source=opening.source(target),
        target=target,
        workspace=opening.workspace(),
        spool=spool,
        deployment=opening.spec.deployment,
        usage=opening.usage(target),
        budgets=configured_budgets(opening.file.environment),
        by=replace(this_user(), team=opening.spec.team),
        log=lambda message: say(message, err=True),
    )
    name = run_path(_RUNS, opening.run_name(stem), deployment=parts.deployment)
    return Run(
        stage=stage, parts=parts, name=own_name(parts.workspace, name, lambda: target.place(stage.target))
    )


def ready(planned: Run, *, again: bool) -> Run:
    """Return the run as this command goes on with it; `again` does what clearing a task does in Airflow."""
    assert planned.stage is not None, "a spec has a stage"
    known = [(folder, Plan.from_json(folder.read_plan() or b"")) for folder in _generations(planned)]
    tries = max((plan.max_tries for _, plan in known), default=0)
    over = bool(known) and known[-1][0].read_report() is not None
    afresh = again or (planned.stage.plan_only and over)
    if over and not afresh:
        planned.parts.log(
            f"The run {planned.name} is finished; this is its report. --again reads the source again."
        )
    elif known and not over:
        planned.parts.log(f"Going on with the run {known[-1][0].path}, as it was planned.")
    return replace(planned, max_tries=tries + 1 if afresh and known else tries)


def driven(run: Run, *, progress: bool) -> Finished:
    """Bring the run to its end, and close what it has opened."""
    try:
        if progress:
            return _shown(run)
        return complete(run, on_pause=lambda pause: run.parts.log(pause.waiting))
    finally:
        for part in (run.parts.provider, run.parts.target):
            with suppress(BatchLLMError):  # what was done is done
                part.close()


def _generations(planned: Run) -> list[RunFolder]:
    return list(generations(planned.parts.workspace, planned.name))


def _shown(run: Run) -> Finished:
    from rich.console import Console

    with Progress(Console(stderr=True)) as shown:
        return shown.complete(run)


def _told(finished: Finished) -> str:
    """Return the report for people. Standard output holds nothing else."""
    report, about = finished.report, finished.about
    why = ", ".join(f"{count:,} {reason}" for reason, count in report.why.items() if count)
    lines = [report.verdict, f"Rows: {why or 'none'}."]
    if report.requests:
        spent = report.spent
        unknown = f" {counted(spent.unpriced, 'answer')} without a known price." if spent.unpriced else ""
        lines += [
            f"Requests: {report.requests:,}; rounds: {report.rounds:,}; batches: {report.batches:,}.",
            f"Cost: ${spent.cost:,.4f}; in real time it would have been ${spent.list_cost:,.4f}.{unknown}",
        ]
    if (packing := report.packing) and "rows" in packing:
        lines.append(
            f"Packed: {packing['requests']:,} of the requests asked about {counted(packing['rows'], 'row')}."
        )
    return "\n".join((*lines, f"Target: {about.target}. Run folder: {about.result_uri}"))


def _as_json(finished: Finished) -> str:
    told: dict[str, Any] = to_xcom(finished.report, finished.about)
    return orjson.dumps(told, option=orjson.OPT_INDENT_2).decode()


#: Requests that are shown.
_SHOWN = 3


def estimate(
    spec_file: Annotated[
        Path, typer.Argument(metavar="SPEC.YAML", help="The stage: see how-to/cli in the docs.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what a stage would send and cost, with its first three requests as they would be sent.

    It needs no key, asks no provider and makes no table. Prompts hold values of your rows.
    """
    with ends_with_a_code(), private_spool() as spool:
        plan, requests = _look(Opening.of(read_spec(spec_file), spec_file), spool)
        named = (with_names(request, _UPLOADED) for request in requests)
        shown = [orjson.loads(_BASE64.sub(b"\xe2\x80\xa6", request)) for request in named]
    if as_json:
        told = {"why": plan.why, "estimate": plan.forecast(), "requests": shown}
        say(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
        return
    low, high = plan.forecast().get("usd_low"), plan.forecast().get("usd_high")
    between = "" if low is None or high is None else f" Between ${low:,.4f} and ${high:,.4f}."
    say(f"{plan.described()}{between}")
    for request in shown:
        say(orjson.dumps(request, option=orjson.OPT_INDENT_2).decode())


#: Replaces the bytes of an attachment, which no person can read.
_BASE64 = re.compile(rb"[A-Za-z0-9+/=]{1000,}")
#: Takes the place of the vendor's name of an attachment, which only a submission knows.
_UPLOADED = defaultdict[str, str](lambda: "(uploaded)")


def _look(opening: Opening, spool: Path) -> tuple[Plan, list[bytes]]:
    """Plan as a run would, and keep nothing."""
    target = opening.warehouse(opening.spec.warehouse)
    source, provider = opening.source(target), opening.keyless_provider()
    parts = Parts(
        provider=provider,
        source=source,
        target=target,
        workspace=_workspace(opening, spool),
        spool=spool,
        deployment=opening.spec.deployment,
        budgets=configured_budgets(opening.file.environment),
        log=lambda message: say(message, err=True),
    )
    folder = RunFolder(workspace=parts.workspace, run="estimate")
    try:
        return Planner(stage=opening.stage(plan_only=True), parts=parts, folder=folder, max_tries=0).look(
            _SHOWN
        )
    finally:
        for part in (provider, target, source):
            with suppress(BatchLLMError):  # what was done is done
                if hasattr(part, "close"):  # files hold nothing open
                    part.close()


def _workspace(opening: Opening, spool: Path) -> Workspace:
    """Return the workspace, to see which rows are in flight. A missing workspace is not made."""
    uri = opening.spec.workspace
    is_new = "://" not in uri and not opening.file.path(uri).exists()
    return Workspace.open(str(spool / "workspace")) if is_new else opening.workspace(probe=False)
