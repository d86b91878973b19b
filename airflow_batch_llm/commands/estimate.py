"""`estimate`: what the stage of a file would send and cost, without a key, a table or a call."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import orjson
import typer

from airflow_batch_llm.commands.budget import configured_budgets
from airflow_batch_llm.commands.exit_code import ends_with_a_code, say
from airflow_batch_llm.commands.opening import Opening
from airflow_batch_llm.commands.spec import read_spec
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.planning import Planner
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.tidying import private_spool
from airflow_batch_llm.store import Workspace

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
        shown = [orjson.loads(_BASE64.sub(b"\xe2\x80\xa6", request)) for request in requests]
    if as_json:
        told = {"why": plan.why, "estimate": plan.forecast(), "requests": shown}
        say(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
        return
    low, high = plan.forecast().get("usd_low"), plan.forecast().get("usd_high")
    between = "" if low is None or high is None else f" Between ${low:,.4f} and ${high:,.4f}."
    say(f"{plan.described()}{between}")
    for request in shown:
        say(orjson.dumps(request, option=orjson.OPT_INDENT_2).decode())


#: The bytes of an attachment, which say nothing to a reader.
_BASE64 = re.compile(rb"[A-Za-z0-9+/=]{1000,}")


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
    """Return the workspace, to look at what is in flight. One that is not there yet is not made: nothing is."""
    uri = opening.spec.workspace
    is_new = "://" not in uri and not opening.file.path(uri).exists()
    return Workspace.open(str(spool / "workspace")) if is_new else opening.workspace(probe=False)
