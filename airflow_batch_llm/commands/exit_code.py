"""Define exit codes that tell a shell or a scheduler whether to repeat a command."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from getpass import getuser
from socket import gethostname

import typer

from airflow_batch_llm.core.journal import Doer
from airflow_batch_llm.core.printing import printable
from airflow_batch_llm.errors import (
    BatchLLMError,
    CanaryFailed,
    DeadlinePassed,
    EvaluationFailed,
    QualityGateFailed,
)
from airflow_batch_llm.stage.telemetry import quiet_process


def say(text: str, *, err: bool = False) -> None:
    """Print a text with its control and format characters escaped. Line ends stay."""
    typer.echo(printable(text), err=err)


def this_user() -> Doer:
    """Return who runs this command, for the records of a run."""
    try:
        user = getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return Doer(host=gethostname(), user=user)


#: The switch of Airflow's configuration, which a shell can set, too.
_SDK_LOGS = "AIRFLOW__BATCH_LLM__SDK_LOGS"


class ExitCode(IntEnum):
    """The caller's next step."""

    OK = 0
    FAILED = 1  # what was answered has landed, and it is not enough: look at the failures table
    CHANGE_FIRST = 2  # the same command fails again until something is changed
    REPEAT = 3  # the same command may succeed later, and pays for nothing twice
    INTERRUPTED = 130  # by Ctrl-C, as shells have it


def exit_code(error: BatchLLMError) -> ExitCode:
    """Return the exit code for one of the package's errors."""
    if isinstance(error, QualityGateFailed | CanaryFailed | DeadlinePassed | EvaluationFailed):
        return ExitCode.FAILED
    return ExitCode.REPEAT if error.retryable else ExitCode.CHANGE_FIRST


@contextmanager
def ends_with_a_code() -> Iterator[None]:
    """Turn the package's errors into a message on standard error and an exit code.

    Other errors are bugs and keep their traceback.
    """
    if os.environ.get(_SDK_LOGS, "").lower() not in ("1", "t", "true"):
        quiet_process()
    try:
        yield
    except BatchLLMError as error:
        say(f"{type(error).__name__}: {error.in_full}", err=True)
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt as error:
        say("Interrupted. Batches go on at the provider; the same command goes on with them.", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from error
