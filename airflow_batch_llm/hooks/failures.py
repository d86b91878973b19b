"""Our errors as Airflow's, which know whether a task is tried again."""

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_batch_llm.errors import BatchLLMError


@contextmanager
def translated_errors() -> Iterator[None]:
    """Errors that another attempt may not meet are retried; all others fail the task for good."""
    try:
        yield
    except BatchLLMError as error:
        kind = AirflowException if error.retryable else AirflowFailException
        raise kind(f"{type(error).__name__}: {error}") from error
