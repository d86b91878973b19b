"""A driver's errors in our words. A driver's message may quote a row's value, so it is never passed on as it is."""

from collections.abc import Callable
from types import TracebackType

from airflow_batch_llm.errors import BatchLLMError, raise_alone

# PEP 249's names of errors that are not the statement's fault: a lost connection, a server that restarts.
_MAY_PASS = {"OperationalError", "InterfaceError"}

# MySQL's drivers name errors of a statement so, too. Of the server's own codes these pass: no free connection, it shuts
# down, waited too long for a lock, deadlock, connection killed.
_SERVER_CODES = range(1000, 2000)
_PASSING_CODES = {1040, 1053, 1205, 1213, 1927}


def may_pass(error: Exception, code: object = None) -> bool:
    """Return whether the same statement may succeed later, as far as a driver's classes and codes show."""
    if not any(kind.__name__ in _MAY_PASS for kind in type(error).__mro__):
        return False
    return code not in _SERVER_CODES or code in _PASSING_CODES


class translated:  # noqa: N801 - it is used like a function
    """Raise what `describe` makes of a driver's error, in a chain that does not hold the driver's error.

    A `@contextmanager` cannot do that: Python adds the error that the caller handles to whatever a generator raises.
    """

    def __init__(
        self,
        errors: type[Exception] | tuple[type[Exception], ...],
        describe: Callable[[Exception], BatchLLMError],
    ) -> None:
        self._errors = errors
        self._describe = describe

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, self._errors):
            raise_alone(self._describe(error))
