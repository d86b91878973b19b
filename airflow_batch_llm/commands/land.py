"""`land`: a finished run into its tables once more, from the answers that its folder keeps."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import orjson
import typer

from airflow_batch_llm.commands.exit_code import ends_with_a_code, say
from airflow_batch_llm.commands.opening import Opening
from airflow_batch_llm.commands.spec import read_spec
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.errors import BatchLLMError, InputError
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.routed import routed
from airflow_batch_llm.stage.inspection import open_run_folder
from airflow_batch_llm.stage.land.finishing import land_again
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder, generations
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.tidying import private_spool


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
    """Land one generation again. Returns what is said of it."""
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
