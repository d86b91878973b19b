"""Delete prompts and answers when their time has come: of finished runs, and of runs that never finished.

Payloads go first and the register's entry last, so that a crash or a store error between the two only delays them.
"""

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir, mkdtemp

import orjson

from airflow_batch_llm.errors import BatchLLMError, StoreError
from airflow_batch_llm.stage.land.finishing import Finisher
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.registers import Due, Registers
from airflow_batch_llm.stage.send.uploading import delete_uploads

_PREFIX = "batch-llm-spool-"
_LOCK = "owner.lock"
#: Seconds after which a spool without a lock file counts as left by a killed process, and not as being made.
_UNLOCKED_SECONDS = 3600.0


@contextmanager
def private_spool() -> Iterator[Path]:
    """Make a spool for this process and remove it at the end. Spools of dead processes are removed first."""
    sweep_spools(Path(gettempdir()))
    folder = Path(mkdtemp(prefix=_PREFIX))
    try:
        with (folder / f"{_LOCK}.new").open("xb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A lock file that has its name is locked already.
            (folder / f"{_LOCK}.new").rename(folder / _LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_spools(parent: Path) -> None:
    """Remove this user's spools whose owner is dead. What cannot be removed is left for the next start."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                _sweep_spool(folder, age=time.time() - status.st_mtime)


def _sweep_spool(folder: Path, age: float) -> None:
    try:
        lock = (folder / _LOCK).open("rb")
    except FileNotFoundError:
        if age > _UNLOCKED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError while the owner lives
        shutil.rmtree(folder, ignore_errors=True)


_DAY_SECONDS = 86_400.0
#: An unfinished run keeps its payloads at least this long after its deadline, so that people can repair and retry.
_UNFINISHED_DAYS = 7.0
#: The most runs that one start handles, so that a large backlog does not delay it.
_RUNS_AT_ONCE = 20


def register_unfinished(parts: Parts, folder: RunFolder, keep_days: float | None) -> None:
    """Register a run before its first payload is written, so that a failed run is tidied too."""
    if keep_days is not None:
        at = parts.clock() + max(keep_days, _UNFINISHED_DAYS) * _DAY_SECONDS
        Registers(workspace=parts.workspace).add_due(folder, at)


def tidy(parts: Parts) -> None:
    """Delete payloads whose time has come. An error delays one run by a day and is a warning."""
    registers = Registers(workspace=parts.workspace)
    try:
        for handled, due in enumerate(registers.due(parts.clock())):
            if handled == _RUNS_AT_ONCE:
                break
            try:
                _tidy_run(parts, registers, due)
            except BatchLLMError as error:
                parts.warn(
                    f"The prompts and answers of {due.folder.path} could not be deleted yet: {error.in_full}"
                )
                registers.add_due(due.folder, parts.clock() + _DAY_SECONDS)
                registers.drop_due(due)
    except StoreError as error:
        parts.warn(f"Prompts and answers whose time has come could not be looked for: {error.in_full}")


def _tidy_run(parts: Parts, registers: Registers, due: Due) -> None:
    data = due.folder.read_plan()
    plan = None if data is None else Plan.from_json(data)
    at = _kept_until(parts, due.folder, plan)
    if plan is None and registers.is_registered_later(due):
        registers.drop_due(due)
    elif at > parts.clock():
        registers.add_due(due.folder, at)
        registers.drop_due(due)
    else:
        if plan is not None:
            delete_uploads(parts, due.folder, plan)
        due.folder.delete_payloads()
        if plan is not None:
            registers.close_run(plan.registered_as, due.folder)
        registers.drop_due(due)


def _kept_until(parts: Parts, folder: RunFolder, plan: Plan | None) -> float:
    """Return the time at which the payloads of a run may be deleted, in seconds since the epoch."""
    if plan is None:
        return 0.0
    days = plan.limits.keep_days
    finished = Finisher(parts=parts, folder=folder, first=plan).stored()
    if finished is None:
        last = max((orjson.loads(data)["at"] for data in folder.deadlines()), default=plan.planned_at)
        return last + max(days or 0.0, _UNFINISHED_DAYS) * _DAY_SECONDS
    return (finished.about.completed_at or 0.0) + (days or 0.0) * _DAY_SECONDS
