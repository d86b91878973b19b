"""Define every error that the package raises, in one tree.

    BatchLLMError
    ├── InputError               the stage as it is written cannot run; nothing was sent
    │   ├── PromptError          the template and the row's columns do not fit
    │   ├── OutputTypeError      the output type cannot be expressed for this provider
    │   ├── SourceError          the source has NULL or duplicate keys, or cannot be read
    │   ├── TargetError          the target table does not fit, or may not be written
    │   └── MissingExtra         an optional dependency is not installed
    ├── BudgetExceeded           going on would cost more than was allowed
    ├── QualityGateFailed        too few of the rows that were sent succeeded
    ├── CanaryFailed             the canary was not good enough, so the rest was not sent
    ├── EvaluationFailed         the answers to golden rows are not good enough
    ├── DeadlinePassed           batches were still running when the run's time was over
    ├── ProviderError            a call to the provider did not work
    │   ├── Refused              the provider says no, and will say no again
    │   │   └── FileRefused      it says so of one file, an attachment
    │   ├── Unavailable          the provider cannot answer now; nothing took effect
    │   │   └── Later            the provider's quota is full for now; nothing was accepted
    │   ├── UnknownFate          a creation was sent and its answer was lost: look before sending again
    │   └── ResultsGone          the provider no longer holds the results
    ├── WarehouseError           the database refused or broke off a statement
    │   └── WarehouseBusy        another writer holds the database, or it restarts, or the connection broke
    │       └── WarehouseUnreachable   no connection can be opened
    └── StoreError               the workspace does not work as it must
        ├── StoreUnreadable      a record could not be read; that never means that there is none
        ├── StoreUnavailable     the workspace accepts no writes now: a full disk, an outage
        └── StoreUnsafe          the workspace cannot create a record exactly once

`retryable` is True if the same attempt may succeed later without a change by the user.
"""

from typing import ClassVar, NoReturn


class BatchLLMError(Exception):
    """Root of the tree. The message says what happened, to which rows or batch, and what to do next.

    The message may travel to XCom, lineage and other systems. `detail` holds a vendor's own words, without secrets, and
    goes to logs and to the terminal only.
    """

    retryable: ClassVar[bool] = False
    is_user_error: ClassVar[bool] = False
    """The message says all that the user needs for the fix. A stack trace would only hide it."""
    detail: str = ""

    @property
    def in_full(self) -> str:
        """The message and the detail, for a log."""
        return f"{self} It said: {self.detail}" if self.detail else str(self)


def forget_hidden(error: BaseException) -> None:
    """Take the errors that `from None` has only hidden out of a chain."""
    behind: BaseException | None = error
    while behind is not None:
        if behind.__suppress_context__:
            behind.__context__ = None
        behind = behind.__cause__ or behind.__context__


def raise_alone(error: BaseException) -> NoReturn:
    """Raise an error whose chain holds no other.

    `from None` only hides the error that is being handled: it stays in `__context__`, where a formatter or an error
    tracker finds a driver's message with a row in it, or a vendor's with a key.
    """
    try:
        raise error from None
    finally:
        error.__context__ = None


class InputError(BatchLLMError):
    """The stage as it is written cannot run. Nothing was sent, nothing was paid."""

    is_user_error: ClassVar[bool] = True


class PromptError(InputError):
    """The prompt template and the columns of the row do not fit."""


class OutputTypeError(InputError):
    """The output type cannot be expressed for this provider."""


class SourceError(InputError):
    """The source rows cannot be used: NULL keys, duplicate keys, or an unreadable source."""


class TargetError(InputError):
    """The target table does not fit the answers, or may not be written."""


class MissingExtra(InputError):
    """An optional dependency is needed and not installed."""

    def __init__(self, needed_by: str, extra: str, missing: ImportError) -> None:
        super().__init__(
            f"{needed_by} needs the Python package {missing.name}, which cannot be imported."
            f" Run: pip install 'airflow-batch-llm[{extra}]'"
        )


class BudgetExceeded(BatchLLMError):
    """The estimate, together with what is already spent, is above the allowed cost."""

    is_user_error: ClassVar[bool] = True


class QualityGateFailed(BatchLLMError):
    """Too few of the rows that were sent succeeded. The good rows have landed."""

    is_user_error: ClassVar[bool] = True


class CanaryFailed(BatchLLMError):
    """The canary's answers were not good enough, or cost too much. They have landed, and the rest was not sent."""

    is_user_error: ClassVar[bool] = True


class EvaluationFailed(BatchLLMError):
    """The answers to golden rows are not good enough. They have landed in the evaluation's own table."""

    is_user_error: ClassVar[bool] = True


class DeadlinePassed(BatchLLMError):
    """Batches were still running when the run's time was over. What had been answered has landed."""

    is_user_error: ClassVar[bool] = True


class ProviderError(BatchLLMError):
    """A provider call did not work. The message holds a code and a status; the vendor's words are in `detail`."""

    status: int | None = None
    """HTTP status of the vendor's answer. None if there was no answer."""


class Refused(ProviderError):
    """The provider refuses, and repeating the call will not help (a bad key, a bad parameter, no money)."""

    is_user_error: ClassVar[bool] = True


class FileRefused(Refused):
    """The provider refuses to store this file. That says nothing about others, unless it stores none at all."""


class Unavailable(ProviderError):
    """The provider cannot answer at the moment; the call took no effect."""

    retryable: ClassVar[bool] = True

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Later(Unavailable):
    """The provider accepts nothing more for now (an enqueued-token quota is full): wait, then send again."""


class UnknownFate(ProviderError):
    """A creation was sent and no definite answer came back. The batch may exist: search before sending again."""

    retryable: ClassVar[bool] = True


class ResultsGone(ProviderError):
    """The provider no longer holds the results of this batch."""


class WarehouseError(BatchLLMError):
    """A database refused or broke off a statement."""


class WarehouseBusy(WarehouseError):
    """The database takes nothing at the moment: another writer holds it, it restarts, or it cannot be reached."""

    retryable: ClassVar[bool] = True


class WarehouseUnreachable(WarehouseBusy):
    """No connection to the database can be opened."""


class StoreError(BatchLLMError):
    """The workspace that holds the run folder does not work as it must."""


class StoreUnreadable(StoreError):
    """A record could not be read. Whether it exists is unknown, so nothing may be sent on the strength of it."""

    retryable: ClassVar[bool] = True


class StoreUnavailable(StoreError):
    """The workspace takes nothing at the moment. What was being written may or may not be there: read it again."""

    retryable: ClassVar[bool] = True


class StoreUnsafe(StoreError):
    """The workspace let two writers create the same record, so it cannot guard against paying twice."""
