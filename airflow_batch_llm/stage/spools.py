"""A private folder on the worker's disk for one attempt, and the removal of what killed workers left.

The owner holds a lock on a file in its spool. The system releases the lock when the process dies, however it dies,
so a spool whose lock is free has no owner. Process ids, which are reused, are not needed.
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

_PREFIX = "batch-llm-spool-"
_LOCK = "owner.lock"
#: A spool without a lock file is being made, or its maker was killed at once. Seconds until the latter is assumed.
_UNLOCKED_SECONDS = 3600.0


@contextmanager
def private_spool() -> Iterator[Path]:
    """Make a spool for this process and remove it at the end. Spools of dead processes are removed first."""
    sweep_spools(Path(gettempdir()))
    folder = Path(mkdtemp(prefix=_PREFIX))
    try:
        with (folder / f"{_LOCK}.new").open("xb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / f"{_LOCK}.new").rename(
                folder / _LOCK
            )  # a lock file that has its name is locked already
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
