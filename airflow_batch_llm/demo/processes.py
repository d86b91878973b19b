"""Start processes that end with their parent.

Each leads a process group, which is signalled by its id, never by name.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_STOP_SECONDS = 20.0
_LOOK_SECONDS = 0.05


class Service:
    """One process that runs until it is stopped, and what it says, in a file."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], output: Path) -> None:
        self._command = list(command)
        self._env = dict(env)
        self.output = output
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "it has been started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def reap(self) -> int:
        """Wait until the process is gone; at once if that takes too long. Its exit code is given."""
        assert self._process is not None, "it has been started"
        try:
            return self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            return self._process.wait()

    def tail(self, lines: int = 30) -> str:
        """The last of what the process has said."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that what was started is stopped."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_all(services: Iterable[Service]) -> None:
    """Ask all of them to end, side by side, and see to it that nothing of them is left."""
    running = [service for service in services if service.is_running]
    for service in running:
        service.signal(signal.SIGTERM)
    for service in running:
        service.reap()
        service.signal(signal.SIGKILL)  # what it had started and not stopped
        _until_group_is_gone(service.pid)


def _until_group_is_gone(group: int) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(_LOOK_SECONDS)
