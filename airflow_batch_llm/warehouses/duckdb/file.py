"""One DuckDB file, opened and let go: who may have it, what it may hold in memory, and what its errors say.

The limit of the memory is for what a statement needs. What DuckDB has read it would keep until the limit is
reached, so it is told to forget that from time to time.
"""

import logging
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airflow_batch_llm.errors import (
    BatchLLMError,
    InputError,
    MissingExtra,
    SourceError,
    TargetError,
    WarehouseBusy,
    WarehouseError,
)
from airflow_batch_llm.warehouses.refusal import translated

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

logger = logging.getLogger(__name__)

#: Each attempt costs CPU time, so the pauses between them grow.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0
#: Errors that speak of the statement alone. Others may quote a value.
_ABOUT_THE_SOURCE = ("Catalog", "Binder", "Parser", "Permission")
_ABOUT_THE_STATEMENT = ("Catalog", "Binder", "Parser", "Permission", "IO", "Dependency")


class DuckDBFile:
    """A database file, and how it is opened."""

    def __init__(
        self, path: str | Path, *, lock_wait_seconds: float, options: Mapping[str, str | int | bool]
    ) -> None:
        if str(path).startswith(":memory:") or not str(path):
            raise TargetError("A DuckDB in memory is gone with its process: name a file.")
        self.path = Path(path).absolute()
        self._lock_wait_seconds = lock_wait_seconds
        self._options = {
            "temp_directory": f"{self.path}.tmp",
            "preserve_insertion_order": False,
            "python_enable_replacements": False,  # no query reads a variable of this process
            **options,
        }

    def open(self, *, read_only: bool) -> "DuckDBPyConnection":
        """A connection, as soon as no other process stands in the way."""
        duckdb = _driver()
        until = time.monotonic() + self._lock_wait_seconds
        pause, told = _FIRST_PAUSE_SECONDS, ""
        while True:
            try:
                connection: DuckDBPyConnection = duckdb.connect(
                    self.path, read_only=read_only, config=dict(self._options)
                )
                return connection
            except duckdb.InvalidInputException as error:
                raise InputError(
                    f"DuckDB does not take the options for {self.path}: {str(error).splitlines()[0]}. They are in the"
                    " connection's extra, and in source_hook_params or target_hook_params."
                ) from None
            except (duckdb.IOException, duckdb.ConnectionException) as error:
                holder = _holder(str(error))
                if holder is None:
                    raise
            if time.monotonic() > until:
                raise WarehouseBusy(
                    f"{self.path} is held by {holder}, and was not let go in {self._lock_wait_seconds:g} s. "
                    "DuckDB lets one process write at a time: close the other, or let the tasks run one by one."
                )
            if holder != told:
                told = holder
                logger.warning(
                    "%s is held by %s. Waiting up to %g s for it to end.",
                    self.path,
                    holder,
                    self._lock_wait_seconds,
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def work_alone(self, connection: "DuckDBPyConnection") -> None:
        """Let the calling thread do all the work from now on: it is the condition of `forget`."""
        connection.execute("SET threads = 1")

    def forget(self, connection: "DuckDBPyConnection") -> None:
        """Give back the memory of blocks that were read and are not in use."""
        # Another thread that asked for memory at this moment would be refused it: there must be none.
        with suppress(_driver().OutOfMemoryException):  # what is in use is more than that
            connection.execute("SET memory_limit = '16MB'")
        connection.execute("SET memory_limit = $limit", {"limit": self._options["memory_limit"]})

    def translated(self) -> Any:
        """A context in which DuckDB's errors become ours."""
        return translated((_driver().Error, pa.ArrowException, OSError), self._describe)

    def translated_reading(self) -> Any:
        """A context in which DuckDB's errors become ours, and what is wrong with the source is a `SourceError`."""
        return translated((_driver().Error, pa.ArrowException, OSError), self._describe_reading)

    def _describe_reading(self, error: Exception) -> BatchLLMError:
        name = type(error).__name__.removesuffix("Exception")
        if name in _ABOUT_THE_SOURCE:
            return SourceError(
                f"DuckDB cannot read the source from {self.path} ({name}): {str(error).splitlines()[0]} "
                "Check source_table or source_sql."
            )
        return self._describe(error)

    def _describe(self, error: Exception) -> BatchLLMError:
        name = type(error).__name__.removesuffix("Exception")
        if name == "OutOfMemory":
            return WarehouseError(
                f"DuckDB needs more than its memory_limit of {self._options['memory_limit']} on {self.path}: it reads "
                "some thousand rows at once, however long they are. Raise the limit, or read fewer long columns."
            )
        said = f": {str(error).splitlines()[0]}" if name in _ABOUT_THE_STATEMENT else ""
        return WarehouseError(f"DuckDB refused a statement on {self.path} ({name}){said}")


def _driver() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtra("DuckDB", "duckdb", error) from None
    return duckdb


def _holder(message: str) -> str | None:
    """Who has the file, from DuckDB's words; None if the trouble is another."""
    if found := re.search(r"Conflicting lock is held in (.+?) \(PID (\d+)\)", message):
        return f"process {found[2]} ({found[1]})"
    if "different configuration" in message:
        return "this process, which reads it still (release() lets it go)"
    return "another process" if "Could not set lock" in message else None
