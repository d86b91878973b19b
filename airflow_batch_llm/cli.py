"""The `airflow-batch-llm` command: each subcommand parses its options and hands over to the module that does the work."""

import typer

import airflow_batch_llm
from airflow_batch_llm.commands.evaluate import evaluate
from airflow_batch_llm.commands.run import estimate, run
from airflow_batch_llm.commands.run_folder import cancel, inspect, land
from airflow_batch_llm.commands.spending import budget, usage
from airflow_batch_llm.commands.workspace import erase, runs
from airflow_batch_llm.demo.command import demo
from airflow_batch_llm.demo.story import story
from airflow_batch_llm.simulator.command import simulate

app = typer.Typer(
    help="Batch inference over warehouse tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they print local variables, and so keys and rows
)
app.command()(run)
app.command()(evaluate)
app.command()(estimate)
app.command()(runs)
app.command()(usage)
app.command()(budget)
app.command()(inspect)
app.command()(land)
app.command()(cancel)
app.command()(erase)
app.command()(simulate)
app.command()(demo)
app.command()(story)


@app.command()
def version() -> None:
    """Print the installed version."""
    typer.echo(airflow_batch_llm.__version__)
