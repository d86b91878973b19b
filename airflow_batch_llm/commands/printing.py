"""Print what a command has to say."""

import typer

from airflow_batch_llm.core.printing import printable


def say(text: str, *, err: bool = False) -> None:
    """Print a text with its control and format characters escaped. Line ends stay."""
    typer.echo(printable(text), err=err)
