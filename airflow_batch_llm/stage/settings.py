"""What a user asks of a stage, and the parts that it works with."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from airflow_batch_llm.core.selection import Only
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.base import SchemaChange, Source, Warehouse, WriteMode

RowFunction = Callable[[Mapping[str, object]], str]


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A template in a file. It is read when a plan is made: a run that has one goes on without the file."""

    path: Path

    def read(self) -> str:
        """The template as it stands there now."""
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise InputError(
                f"prompt_file {self.path} cannot be read ({why}). Put the template there, or correct the path."
            ) from None


def _at_least(least: float, **given: float | None) -> None:
    """Refuse a number that can only be a slip, before it costs a batch for each row or a run that cannot pass."""
    for name, number in given.items():
        if number is not None and not number >= least:
            raise InputError(f"{name}={number:g} is too small: it is {least:g} or more.")


class OverBudget(StrEnum):
    """What happens when the rows would cost more than is allowed."""

    FAIL = "fail"
    PARTIAL = "partial"  # send in source order up to the budget; the rest is postponed


class BadRow(StrEnum):
    """What happens to the run when a row cannot be sent."""

    RECORD = "record"  # it becomes a failure row
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is asked about each row."""

    model: str
    prompt: str | RowFunction | PromptFile
    output_type: object = str
    system_prompt: str | None = None
    prompt_params: Mapping[str, object] = field(default_factory=dict)
    request_params: Mapping[str, object] = field(default_factory=dict)
    max_tokens: int | None = 1024
    endpoint: str | None = None
    cache_system_prompt: bool = False

    def read_prompt(self) -> str | RowFunction:
        """The prompt itself, where it stands in a file."""
        return self.prompt.read() if isinstance(self.prompt, PromptFile) else self.prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where the answers go, and how the two tables look."""

    target: str
    failures_target: str | None = None  # None: the target's name and `__failures`
    carry: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)  # column -> path in the answer
    output_column: str | None = None
    write_mode: WriteMode = WriteMode.MERGE
    on_schema_change: SchemaChange = SchemaChange.APPEND_NEW_COLUMNS
    create_target: bool = True
    partition_by: str | None = None
    cluster_by: tuple[str, ...] = ()
    staging_schema: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    raw_excerpt: bool = True  # whether failures keep the beginning of a bad answer

    def __post_init__(self) -> None:
        if self.target and self.failures_table == self.target:
            raise InputError(
                f"failures_target is the target, {self.target}: failures need a table of their own."
            )

    @property
    def failures_table(self) -> str:
        """Where the rows without a good answer go."""
        return self.failures_target or f"{self.target}__failures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """What limits a run before and after the first cent."""

    only: Only = Only.CHANGED
    retry_dead: bool = False
    max_rows: int | None = None
    max_cost_usd: float | None = 25.0
    on_over_budget: OverBudget = OverBudget.FAIL
    on_bad_row: BadRow = BadRow.RECORD
    max_attempts: int = 3
    min_success_ratio: float = 0.95
    prices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    plan_only: bool = False

    def __post_init__(self) -> None:
        _at_least(0, max_rows=self.max_rows, max_cost_usd=self.max_cost_usd)
        _at_least(1, max_attempts=self.max_attempts)
        if not 0 <= self.min_success_ratio <= 1:
            raise InputError(
                f"min_success_ratio={self.min_success_ratio:g} is no ratio: it lies between 0 and 1, such as 0.95."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast, how long, and how many at once."""

    rows_per_batch: int = 10_000
    max_active_batches: int = 20
    timeout_seconds: float | None = None  # None: the provider's window and two hours
    min_round_seconds: float = 3600.0
    poll_interval: float | None = None
    cancel_on_timeout: bool = True

    def __post_init__(self) -> None:
        _at_least(1, rows_per_batch=self.rows_per_batch, max_active_batches=self.max_active_batches)
        _at_least(0, timeout_seconds=self.timeout_seconds, poll_interval=self.poll_interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Rows in, one typed answer per row out: as the user wrote it, nothing resolved yet."""

    source: Source
    key: tuple[str, ...]
    ask: Ask
    shape: Shape
    guards: Guards = field(default_factory=Guards)
    pace: Pace = field(default_factory=Pace)
    keep_days: float | None = (
        30.0  # prompts and raw answers in the run folder; 0: until landed; None: for good
    )


class Reads(Protocol):
    """Whatever gives the source's rows: a warehouse, or files."""

    def read(self, source: Source) -> pa.RecordBatchReader: ...


def _silent(message: str) -> None:
    """Say nothing: the default for library users without a log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The rooms that meet in a stage. The clock is a part, so that tests can move it."""

    provider: Provider
    source: Reads
    target: Warehouse
    workspace: Workspace
    spool: Path
    clock: Callable[[], float] = time.time
    say: Callable[[str], None] = _silent
    alert: Callable[[str], None] | None = None  # instead of `say`, for what somebody should look at

    def warn(self, message: str) -> None:
        """Say what somebody should look at."""
        (self.alert or self.say)(message)
