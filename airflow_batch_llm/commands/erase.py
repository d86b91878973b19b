"""`erase`: one person's rows out of a whole workspace."""

from dataclasses import asdict
from pathlib import Path
from tempfile import gettempdir
from typing import Annotated

import orjson
import typer

from airflow_batch_llm.commands.exit_code import ExitCode, ends_with_a_code, say
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.stage.erase.erasing import ErasedRun, Erasure, HeldBatch, Options
from airflow_batch_llm.stage.erase.person import Person
from airflow_batch_llm.stage.inspection import moment
from airflow_batch_llm.stage.tidying import private_spool, sweep_spools
from airflow_batch_llm.store import Workspace


def erase(
    uri: Annotated[str, typer.Argument(metavar="WORKSPACE", help="Path or URI of the workspace.")],
    key: Annotated[list[str], typer.Option("--key", help="The key's value. Once for each key column.")],
    key_column: Annotated[
        list[str] | None, typer.Option("--key-column", help="The column of each --key, in their order.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Only runs that write to this table.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look, and change nothing.")] = False,
    even_unfinished: Annotated[
        bool, typer.Option("--even-unfinished", help="Also runs that nobody will finish.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Erase one person's rows, prompts and answers from the run folders of a workspace.

    Prints the SQL for the tables and the vendor's batches, which it does not touch. May be repeated at any time.
    """
    with ends_with_a_code(), private_spool() as scratch:
        sweep_spools(Path(gettempdir()))
        erasure = Erasure(
            workspace=Workspace.open(uri, probe=False),
            person=Person(values=tuple(key), columns=tuple(key_column or ()), target=target),
            scratch=scratch,
            options=Options(dry_run=dry_run, even_unfinished=even_unfinished),
        )
        runs = list(erasure.run())
        leftovers = erasure.leftovers()
    if as_json:
        done = {"dry_run": dry_run, "leftovers": leftovers, "runs": [asdict(run) for run in runs]}
        say(orjson.dumps(done, option=orjson.OPT_INDENT_2).decode())
    else:
        say("\n".join(_told(runs, leftovers, dry_run=dry_run)))
    if any(run.left for run in runs):
        raise typer.Exit(ExitCode.FAILED)


def _told(runs: list[ErasedRun], leftovers: int, *, dry_run: bool) -> list[str]:
    erased = "would be erased" if dry_run else "erased"
    lines = [_run_line(run, erased) for run in runs]
    if leftovers:
        lines.append(f"{counted(leftovers, 'unfinished file')} of killed workers {erased}")
    statements = sorted(
        {statement for run in runs for statement in run.statements if run.rows or run.examples}
    )
    if statements:
        lines += ["", "Not touched: the tables. Run there:", *(f"  {statement}" for statement in statements)]
    batches = [batch for run in runs for batch in run.batches]
    if batches:
        lines += ["", "Not touched: copies at the vendor:", *map(_batch_line, batches)]
    if not runs:
        lines.append("No run folder holds a row with this key.")
    return lines


def _run_line(run: ErasedRun, erased: str) -> str:
    held = [
        counted(count, noun)
        for count, noun in (
            (run.rows, "row"),
            (run.prompts, "prompt"),
            (run.answers, "answer"),
            (run.examples, "example"),
            (run.unplanned, "unused plan"),
        )
        if count
    ]
    what = ", ".join(held) or "nothing, as its payloads are gone"
    if run.left:
        return f"{run.path}: NOT erased, since {run.left}: {what}. Finish the run, or see --even-unfinished."
    return f"{run.path}: {erased}: {what}"


def _batch_line(batch: HeldBatch) -> str:
    until = (
        "until it is deleted there" if batch.until is None else f"until {moment(batch.until)} at the latest"
    )
    upload = f", requests in {batch.upload}" if batch.upload else ""
    sure = "" if batch.is_sure else " It may hold the row: the run folder no longer knows."
    return f"  {batch.provider} batch {batch.batch_id}{upload}, {until}.{sure}"
