"""The `airflow-batch-llm` command: each subcommand parses its options and hands over to the module that does the work."""

import typer

import airflow_batch_llm
from airflow_batch_llm.simulator.command import simulate

app = typer.Typer(help="Batch inference over warehouse tables.", no_args_is_help=True, add_completion=False)
app.command()(simulate)


@app.callback()
def main() -> None:
    """Keep subcommands even while there is only one."""


@app.command()
def version() -> None:
    """Print the installed version."""
    typer.echo(airflow_batch_llm.__version__)
