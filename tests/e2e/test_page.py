"""The page in Airflow's own UI, in a browser, by two users who may read different Dags."""

import json
import secrets
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import pytest

from airflow_batch_llm.demo.local_airflow import Service, until
from tests.airflow.standalone import ROOT, Stack
from tests.e2e.browser import PROGRAM, Browser
from tests.e2e.conftest import ROWS

USERS = ("anna", "bert")
FRAME = "document.querySelector('iframe').contentDocument"

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")


class Front:
    """A second API server of the same Airflow, which asks users to sign in."""

    def __init__(self, stack: Stack) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}"
        home = stack.airflow.setup.home
        self._passwords = {name: secrets.token_hex(8) for name in USERS}
        users = home / "users.json"
        users.write_text(json.dumps(self._passwords))
        settings = {
            "API__BASE_URL": self.url,
            "BATCH_LLM__TASK_TAB": "True",
            "CORE__AUTH_MANAGER": "tests.edge.auth_manager.DagByDagAuthManager",
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:viewer" for name in USERS),
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(users),
        }
        env = stack.airflow.setup.environment(port) | {
            "PYTHONPATH": str(ROOT),
            **{f"AIRFLOW__{name}": value for name, value in settings.items()},
        }
        command = [sys.executable, "-m", "airflow", "api-server", "--port", str(port), "--workers", "1"]
        self.service = Service(command, env, home / "output" / "front.txt")

    def token(self, name: str) -> str:
        """Sign in, as the form does."""
        body = json.dumps({"username": name, "password": self._passwords[name]}).encode()
        asked = urllib.request.Request(
            f"{self.url}/auth/token", data=body, headers={"Content-Type": "application/json"}
        )
        return str(json.load(urllib.request.urlopen(asked))["access_token"])

    def answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.url}/api/v2/version").status == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def front(stack: Stack) -> Iterator[Front]:
    front = Front(stack)
    front.service.start()
    with ExitStack() as ending:
        ending.callback(front.service.reap)
        ending.callback(lambda: front.service.signal(15))
        until(front.answers, "the second API server", 120)
        yield front


def rows(browser: Browser) -> list[str]:
    """The Dags of the runs that the page lists in its frame."""
    browser.until(f"{FRAME}.querySelector('table.runs, .notice')")
    found = browser.evaluate(
        f"[...{FRAME}.querySelectorAll('.runs .name small:nth-of-type(1)')].map(e => e.innerText)"
    )
    return sorted({text.split(" ")[0] for text in found})


def test_two_users_see_their_own_runs_live_and_go_to_the_task_and_back(
    stack: Stack, front: Front, begin: Any
) -> None:
    begin("by_hand", "_of_bert").until_success()
    stack.simulator.fault(provider="openai", kind="hold", times=None)
    case = begin("one_task")
    case.until_sent()
    case.until_watched("label")

    with Browser(dark=True) as browser:
        browser.open(f"{front.url}/llm-batches/")
        assert "Sign in to Airflow" in browser.evaluate("document.body.innerText")
        browser.sign_in(front.url, front.token("bert"))
        browser.open(f"{front.url}/plugin/llm-batches")
        assert rows(browser) == ["by_hand"]

    with Browser() as browser:
        browser.sign_in(front.url, front.token("anna"))
        browser.open(f"{front.url}/plugin/llm-batches")
        assert rows(browser) == ["one_task"]
        state = f"{FRAME}.querySelector('.runs .state').innerText"
        browser.until(f"{FRAME}.querySelector('.runs [data-cell=batches]').innerText === '1 submitted'")
        assert browser.evaluate(state) == "running"
        case.finish()
        case.until_success()
        browser.until(f"{state} === 'passed'", 60)  # nobody has asked for the page again

        browser.evaluate(f"{FRAME}.querySelector('.runs .name > a').click()")
        browser.until(f"{FRAME}.querySelector('.tiles b').innerText === '{ROWS} / {ROWS}'")
        browser.evaluate("localStorage.setItem('theme', 'dark')")
        browser.open(f"{front.url}/plugin/llm-batches")
        browser.until(f"{FRAME}.documentElement.dataset.theme === 'dark'")
        browser.until(f"{FRAME}.querySelector('.runs a[data-airflow]')")
        browser.evaluate(f"{FRAME}.querySelector('.runs a[data-airflow]').click()")
        browser.until("location.pathname.startsWith('/dags/one_task/runs/')")
        assert [error for error in browser.errors if "Content Security Policy" in error] == []


def test_the_link_and_the_tab_of_a_task_lead_to_its_run(stack: Stack, front: Front, begin: Any) -> None:
    case = begin("one_task")
    case.until_success()
    path = f"/api/v2/dags/one_task/dagRuns/{case.run_id}/taskInstances/label/links"
    link = stack.airflow.api.call("GET", path.replace("+", "%2B"))["extra_links"]["LLM batches"]

    with Browser() as browser:
        browser.sign_in(front.url, front.token("anna"))
        browser.open(f"{front.url}{link}")
        assert browser.evaluate("document.querySelector('.title small').innerText").startswith(
            f"one_task · {case.run_id}"
        )
        run_id = quote(case.run_id, safe="")
        browser.open(f"{front.url}/dags/one_task/runs/{run_id}/tasks/label/plugin/llm-batches-task")
        browser.until(f"{FRAME}.querySelector('.tiles b').innerText === '{ROWS} / {ROWS}'")
