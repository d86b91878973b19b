"""A PostgreSQL server of a session's own, on a socket, started as root or not."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Where `useradd` lies, which pgserver runs as root. The PATH of a bare root shell may lack these folders.
_SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")

#: pgserver waits for ten seconds each time, and finds a server that has started meanwhile. A busy machine needs more.
_STARTS = 6


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Start a server that keeps its data below a folder. Gives its URI."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # pgserver asks for it while it is imported
    add_system_folders()
    import pgserver

    for left in reversed(range(_STARTS)):
        try:
            server = pgserver.get_server(folder / "data")
            break
        except (subprocess.TimeoutExpired, AssertionError):  # it starts, and is not ready yet
            pgserver.PostgresServer._instances.pop(folder / "data", None)  # it would be given again as it is
            if not left:
                raise
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def add_system_folders() -> None:
    """Let this process find the programs of the system's administrator."""
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join((*path, *(one for one in _SYSTEM_FOLDERS if one not in path)))
