"""A driver's errors in our words. A driver's message may quote a row's value, so it is never passed on as it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from airflow_batch_llm.errors import BatchLLMError


@contextmanager
def translated(
    errors: type[Exception] | tuple[type[Exception], ...], describe: Callable[[Exception], BatchLLMError]
) -> Iterator[None]:
    """Raise what `describe` makes of a driver's error.

    Raised after the handler, so that not even the exception's context holds the driver's message.
    """
    try:
        yield
        return
    except errors as error:
        described = describe(error)
    raise described
