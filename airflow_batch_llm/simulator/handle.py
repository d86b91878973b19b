"""Run a simulator in its own process, from Python.

    with Simulator(batch_seconds=0.2) as simulator:
        client = anthropic.Anthropic(base_url=simulator.url, api_key="any")
        simulator.fault(provider="anthropic", endpoint="create", kind="drop", effect="after")

The process is stopped by its own id when the block ends. Only the standard library is imported.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

_READY = "simulator ready at "
_START_SECONDS = 30.0
_API_KEY = "SIMULATOR_API_KEY"


class Simulator:
    """Starts `python -m airflow_batch_llm.simulator` on a free port; the options are those of the command."""

    def __init__(
        self,
        *,
        data_dir: Path | str | None = None,
        api_key: str | None = None,
        batch_seconds: float | None = None,
        env: Mapping[str, str] | None = None,
        **options: str | float | None,
    ) -> None:
        self._port = int(options.pop("port", None) or 0)
        named = {"data_dir": data_dir, "batch_seconds": batch_seconds, **options}
        self._arguments = [
            f"--{name.replace('_', '-')}={value}" for name, value in named.items() if value is not None
        ]
        self._keeps = data_dir is not None
        self._env = {**os.environ, **(env or {})}
        if api_key is not None:  # by the environment: everybody can read the arguments of a process
            self._env[_API_KEY] = api_key
        key = self._env.get(_API_KEY)
        self._headers = {} if not key else {"Authorization": f"Bearer {key}"}
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self.url = ""

    # -- the process ---------------------------------------------------------------------------------------------

    def start(self) -> Self:
        # Its output goes to a file, not a pipe: nobody would read what a responder prints later. The pipe to its
        # stdin closes with this process, however that ends, and then the simulator ends too.
        with tempfile.TemporaryFile() as output:
            self._process = subprocess.Popen(  # noqa: S603
                self._command(), stdin=subprocess.PIPE, stdout=output, env=self._env
            )
            self.url = self._announced(output.fileno())
        self._port = urllib.parse.urlsplit(self.url).port or 0
        self._call("GET", "/healthz")
        return self

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "airflow_batch_llm.simulator", *self._arguments]
        if not self._keeps:
            self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="batch-llm-simulator-")
            command.append(f"--data-dir={self._scratch.name}")
        return [*command, f"--port={self._port}", "--end-with-stdin"]

    def stop(self) -> None:
        """Ask the simulator to end, and wait."""
        if self._process is not None:
            self._process.terminate()
            self._reap()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def kill(self) -> None:
        """Kill the simulator, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def restart(self) -> None:
        """Kill the simulator and start it again on the same port, with its state."""
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def openai_url(self) -> str:
        """The base URL that OpenAI clients want."""
        return f"{self.url}/v1"

    def _reap(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def _announced(self, output: int) -> str:
        """Return the URL that the new process prints once it answers."""
        deadline = time.monotonic() + _START_SECONDS
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
            # Read without moving the offset, which the process shares.
            *lines, _ = os.pread(output, 1 << 16, 0).decode().split("\n")
            for line in lines:
                if line.startswith(_READY):
                    return line.removeprefix(_READY)
            time.sleep(0.02)
        self.stop()
        raise RuntimeError("the simulator did not start; stderr says why")

    # -- control -------------------------------------------------------------------------------------------------

    def fault(self, **fault: Any) -> int:
        """Set a fault (see `airflow_batch_llm.simulator.controls.Fault` for its fields)."""
        return int(self._call("POST", "/control/faults", fault)["id"])

    def met(self, fault: int) -> int:
        """Return the number of times that a fault occurred, by the fault's number."""
        known = {each["id"]: each["seen"] for each in self._call("GET", "/control/faults")}
        return int(known[fault])

    def clear_faults(self) -> None:
        self._call("DELETE", "/control/faults")

    def clock(self, *, advance_seconds: float = 0.0, settle: bool = False) -> float:
        """Move the virtual clock forward, and with `settle` wait for all that is due by then. Returns what it shows."""
        wish = {"advance_seconds": advance_seconds, "settle": settle}
        return float(self._call("POST", "/control/clock", wish)["now"])

    def turn(self, **knobs: Any) -> dict[str, Any]:
        """Turn knobs (see `airflow_batch_llm.simulator.controls.Knobs`). Returns all of them."""
        return self._call("POST", "/control/knobs", knobs)  # type: ignore[no-any-return]

    def batch(self, batch_id: str, action: str | None = None, **options: Any) -> dict[str, Any]:
        """Return the simulator's facts about a batch, after an action: "end", "expire" (with `share`) or "hold"."""
        path = f"/control/batches/{batch_id}"
        if action is None:
            return self._call("GET", path)  # type: ignore[no-any-return]
        return self._call("POST", path, {"action": action, **options})  # type: ignore[no-any-return]

    def finish(self, batch_id: str) -> dict[str, Any]:
        """End a batch now, and wait until its results can be read."""
        self.batch(batch_id, "end")
        return self.wait(batch_id)

    def wait(self, batch_id: str) -> dict[str, Any]:
        """Wait until a batch has ended by itself."""
        return self._call("GET", f"/control/batches/{batch_id}?until_ended=true")  # type: ignore[no-any-return]

    def ledger(self) -> dict[str, Any]:
        """Per provider: batches, rows, tokens, ways to ask, duplicates and calls."""
        return self._call("GET", "/control/ledger")  # type: ignore[no-any-return]

    def charges(self, **filters: str) -> Iterator[dict[str, Any]]:
        """Return the executed rows: all, or by provider, way, batch, custom_id, content, outcome, or duplicates="true"."""
        url = f"{self.url}/control/ledger/rows?{urllib.parse.urlencode(filters)}"
        request = urllib.request.Request(url, headers=self._headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
            for line in answer:
                yield json.loads(line)

    def reset(self, *, clock: bool = False) -> None:
        """Forget batches, files, faults, knobs and the ledger, and with `clock` how far it was moved forward."""
        self._call("POST", f"/control/reset{'?clock' if clock else ''}")

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=self._headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code in (400, 404, 409):
                raise ValueError(json.loads(error.read())["error"]) from None
            raise
