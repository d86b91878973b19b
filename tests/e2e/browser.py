"""A headless Chromium, driven by its own DevTools protocol. It needs `chromium` on the PATH and no further package."""

import base64
import json
import shutil
import subprocess
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from websockets.sync.client import connect

from airflow_batch_llm.demo.local_airflow import until

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One window. It is closed at the end of the block, and keeps nothing."""

    def __init__(self, *, dark: bool = False, width: int = 1400, height: int = 900) -> None:
        self._dark, self._size = dark, (width, height)
        self._numbers = count(1)
        self._session: str | None = None
        self.errors: list[str] = []
        """Return what the page's console has reported as errors."""

    def __enter__(self) -> Self:
        assert PROGRAM is not None, "the caller has looked for it"
        with ExitStack() as started:
            folder = started.enter_context(TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True))
            process = subprocess.Popen(
                [PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            started.callback(process.wait, 30)
            started.callback(process.terminate)
            port, path = until(lambda: _address(Path(folder)), "Chromium to start", 60)
            self._socket = started.enter_context(connect(f"ws://127.0.0.1:{port}{path}", max_size=None))
            self._begin()
            self._ending = started.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ending.close()

    def _begin(self) -> None:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        size = {"width": self._size[0], "height": self._size[1], "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def sign_in(self, url: str, token: str) -> None:
        """Give the browser the cookie that Airflow's sign-in gives."""
        self._call("Network.setCookie", name="_token", value=token, url=url)

    def open(self, url: str) -> None:
        """Go to a page and wait until it has loaded."""
        self._call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            return None
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 30.0) -> None:
        """Wait until an expression is true, or finds something."""
        until(lambda: self.evaluate(f"!!({expression})"), f"{expression} in the browser", seconds)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Keep a picture of the window, or of the whole page."""
        data = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]  # type: ignore[no-any-return]
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.errors.append(answer["params"]["entry"]["text"])


def _address(folder: Path) -> list[str] | None:
    """Return the port and the path that Chromium listens on, once it does."""
    file = folder / "DevToolsActivePort"
    lines = file.read_text().split() if file.exists() else []
    return lines if len(lines) == 2 else None
