"""Hold the parts of a stage: a provider, the source, the target and a workspace."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import gethostname
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from airflow_batch_llm.core.budget import SharedBudget
from airflow_batch_llm.core.journal import Doer
from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import BatchLLMError, InputError
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.providers.steps import no_longer_than
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.store.remote import default_filesystem
from airflow_batch_llm.warehouses.base import Target, Warehouse
from airflow_batch_llm.warehouses.stages import RunsStages, StageTables

#: Seconds for a provider to remove one thing, its pauses between attempts included.
_CLEANING_SECONDS = 3.0


class ReadsSource(Protocol):
    """Reads the source's rows: a warehouse, or files."""

    def read(self, source: Source) -> pa.RecordBatchReader: ...


@runtime_checkable
class ReadsFiles(Protocol):
    """A source of files that several workers can divide among themselves."""

    def files(self) -> list[str]:
        """Return the names of all files, in the order in which they are read."""

    def origin(self) -> str:
        """Return text that identifies these files and the way they are read, also among files of the same names."""

    def read(self, source: Source) -> pa.RecordBatchReader: ...

    def read_some(self, names: Sequence[str], schema: pa.Schema) -> pa.RecordBatchReader:
        """Return the rows of these files, in the columns of all files."""


def _silent(message: str) -> None:
    """Say nothing: the default for library users without a log."""


def _find_object(uri: str) -> tuple[Any, str]:
    """Find the file system of an object with the rights of the environment."""
    system = default_filesystem(uri.partition("://")[0], "An attachment")
    return system, system._strip_protocol(uri)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTable:
    """A ledger's table, and a function that opens its database. The connection may not exist until it is used."""

    name: str
    book: str
    """Text that identifies this table among those of the workspace's runs, such as its connection and its name."""
    opened: Callable[[], AbstractContextManager[Warehouse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a stage. The clock and the sleep are parts, so that tests can move time."""

    provider: Provider
    source: ReadsSource
    target: Warehouse
    workspace: Workspace
    spool: Path
    deployment: str = ""
    """Name of this deployment among those that share the workspace. Default: there is only one."""
    usage: UsageTable | None = None
    """The ledger that runs are written to. Default: none is kept."""
    budgets: Mapping[str, SharedBudget] = field(default_factory=dict)
    """The shared budgets that are configured, by name, and the ceiling. Default: there are none."""
    find_object: Callable[[str], tuple[Any, str]] = _find_object
    """Find the file system of an attachment's URI, and the path in it. Default: with the rights of the environment."""
    by: Doer = field(default_factory=lambda: Doer(host=gethostname()))
    """The worker, for the records of the run. Default: the name of this machine alone."""
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    log: Callable[[str], None] = _silent
    left: dict[str, object] = field(default_factory=dict)  # by kind of thing: one could not be cleaned up
    log_warning: Callable[[str], None] | None = None  # instead of `log`, for what a person should look at

    @contextmanager
    def cleaning(self, what: str) -> Iterator[None]:
        """Clean up in this block.

        A failure is a warning, once for each kind of thing, since no answer depends on it. A provider gets seconds for it,
        and after a failure one call for each further thing of the kind.
        """
        try:
            with no_longer_than(0.0 if what in self.left else _CLEANING_SECONDS):
                yield
        except BatchLLMError as error:
            own = object()
            if self.left.setdefault(what, own) is own:  # one step, for files are removed side by side
                self.warn(f"{what[0].upper()}{what[1:]} could not be removed, and stays: {error.in_full}")

    def warn(self, message: str) -> None:
        """Log a warning that a person should see."""
        (self.log_warning or self.log)(message)


def stage_tables(parts: Parts, target: Target) -> StageTables:
    """Return the tables of a stage that its target's warehouse runs."""
    assert isinstance(parts.target, RunsStages), "the plan was made for a warehouse that does"
    return parts.target.stage_tables(target)


def planned_tables(parts: Parts, target: Target, nonce: str, run: str) -> StageTables:
    """Return the stage tables of a plan. Raises `InputError` if the table of its rows does not exist any more."""
    tables = stage_tables(parts, target)
    if tables.plan_table(nonce) is None:
        raise InputError(
            f"The run {run} cannot end: its table llm_plan_{nonce} is not in {tables.uri}. It was dropped, or has vanished"
            " after 30 days, and without it nobody can tell which rows the answers are for. Nothing was sent. Delete the run"
            " folder, and run the task again: the rows that are not in the target yet are asked, and paid, again."
        )
    return tables
