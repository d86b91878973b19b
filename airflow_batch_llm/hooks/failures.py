"""Our errors as Airflow's, which know whether a task is tried again.

Airflow hands an exception's text to lineage and to callbacks. A vendor's own words are in our error's `detail`: they are
logged here, and travel no further.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_batch_llm.errors import BatchLLMError, forget_hidden

_log = logging.getLogger(__name__)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Errors that another attempt may not meet are retried; all others fail the task for good."""
    try:
        yield
    except BatchLLMError as error:
        if error.detail:
            _log.error("The provider said: %s", error.detail)
        forget_hidden(error)
        kind = AirflowException if error.retryable else AirflowFailException
        raise kind(f"{type(error).__name__}: {error}") from error
