"""Tell the results of a batch from what a proxy, a login page or a lagging store gives in their place."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from airflow_batch_llm.core.model import BatchStatus, Outcome
from airflow_batch_llm.errors import BatchLLMError


class Incomplete(BatchLLMError):
    """What came is not the whole of a batch's results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The results that a batch must have."""

    lines: int
    """The number of lines, at least."""
    mark: bytes
    """What the custom_ids of the batch begin with. A line without it is not the batch's."""

    @classmethod
    def of(cls, status: BatchStatus, *, token: str, requests: int) -> "Expected":
        """Return what to expect: as many lines as the vendor counts, or all where it does not count."""
        stopped = status.unmentioned is not Outcome.MISSING  # such a batch leaves rows out
        counted = status.finished if status.finished is not None else (0 if stopped else requests)
        return cls(lines=min(counted, requests), mark=f"{token}-".encode())


@dataclass(slots=True)
class Lines:
    """Result lines on their way, counted. Raises `Incomplete` after the last one if they are not what is expected."""

    lines: Iterable[bytes]
    expected: Expected | None
    count: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[bytes]:
        marked = 0
        mark = self.expected.mark if self.expected is not None else b""
        for line in self.lines:
            self.count += not line.isspace() and bool(line)
            marked += mark in line
            yield line
        if self.expected is None:
            return
        if self.expected.lines and not marked:
            raise Incomplete(f"none of {self.count:,} lines is a result of the batch.")
        if self.count < self.expected.lines:
            raise Incomplete(f"{self.count:,} of {self.expected.lines:,} results came.")
