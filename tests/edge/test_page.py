"""The page in Airflow's API server, asked by users of its auth manager, about runs of real tasks."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from fastapi.testclient import TestClient

from airflow_batch_llm.demo.story import tiles
from airflow_batch_llm.stage.records.run_index import RunIndex, RunRecord
from airflow_batch_llm.store import Workspace
from tests.edge.conftest import TICKETS, World
from tests.edge.tasks import transform

Run = Callable[..., Any]

PAGE = "/llm-batches"


@pytest.fixture
def api(airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The API server with its plugins. Nobody is let in without a token."""
    from airflow.api_fastapi import app

    settings = {
        "CORE__AUTH_MANAGER": "tests.edge.auth_manager.DagByDagAuthManager",
        "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "API_AUTH__JWT_SECRET": "not a secret, and long enough for its algorithm " * 2,
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AIRFLOW__{name}", value)
    app.purge_cached_app()
    yield TestClient(app.create_app("core"), follow_redirects=False)
    app.purge_cached_app()


class Reader:
    """Somebody who has signed in."""

    def __init__(self, api: TestClient, name: str, role: str = "viewer") -> None:
        from airflow.api_fastapi.app import get_auth_manager
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

        self._api = api
        token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name, role=role))
        self._headers = {"Cookie": f"_token={token}"}

    def get(self, path: str) -> Any:
        return self._api.get(f"{PAGE}{path}", headers=self._headers)

    def links(self, query: str = "") -> list[str]:
        """The views of single runs that the list leads to, below the page's path."""
        answer = self.get(f"/{query}")
        assert answer.status_code == 200, answer.text
        found = re.findall(rf'href="{PAGE}(/[^"]+/run\?[^"]+)"', answer.text)
        return [link.replace("&amp;", "&") for link in found]


def dag(dag_id: str, **changes: Any) -> DAG:
    with DAG(dag_id, schedule=None) as dag:
        transform(**changes)
    return dag


def test_each_user_sees_the_runs_of_their_own_dags_and_nobody_else_sees_any(
    world: World, run: Run, api: TestClient
) -> None:
    run(dag("page_a"))
    run(dag("page_b", target="b_labels"))
    (of_a,), (of_b,) = Reader(api, "anna").links(), Reader(api, "bert").links()

    assert "/dags/page_a/" in of_a
    assert "/dags/page_b/" in of_b
    assert set(Reader(api, "otto").links()) == {of_a, of_b}
    assert Reader(api, "otto").links("?dag_id=page_b") == [of_b]
    asked = {
        "/?dag_id=page_b": 403,
        of_a: 200,
        of_b: 403,
        of_b.replace("/run?", "/progress?"): 403,
        of_b.replace("/dags/page_b/", "/dags/page_a/"): 404,  # another Dag's folder
        of_b.replace("/dags/page_b/", "/dags/~/"): 404,
        of_b.replace("/dags/page_b/", "/commands/"): 403,
        "/dags/page_a/run?path=page_a/../page_b/g1": 404,
    }
    assert {path: Reader(api, "anna").get(path).status_code for path in asked} == asked
    assert Reader(api, "otto", role="op").get(of_b.replace("/dags/page_b/", "/commands/")).status_code == 404
    nobody = {api.get(f"{PAGE}{path}").status_code for path in (*asked, "/", "/static/page.css")}
    assert nobody == {401}


def test_a_run_is_shown_with_its_failures_and_keys_and_without_text_of_a_row(
    world: World, run: Run, api: TestClient
) -> None:
    world.simulator.fault(provider="anthropic", kind="errored", every=3, times=100)
    run(dag("page_a", guards={"min_success_ratio": 0.1, "max_attempts": 1}))

    reader = Reader(api, "anna")
    (link,) = reader.links()
    shown = reader.get(link)

    figures = tiles(shown.text)
    assert figures["Good rows"] == f"8 / {len(TICKETS)}"
    assert tiles(reader.get("/spend").text)["Spent"] == next(
        figure for name, figure in figures.items() if name.startswith("Spent of $")
    )
    assert not any(text in shown.text for row in TICKETS for text in row[1:])
    keys = re.findall(r"<td><code>([a-z_]+)</code></td><td class=\"number\">4</td><td>(.*?)</td>", shown.text)
    assert [
        (code, set(re.findall(r"<code>(\d+)</code>", found)) <= {str(row[0]) for row in TICKETS})
        for code, found in keys
    ] == [("api_error", True)]
    assert "script-src 'self'" in shown.headers["content-security-policy"]


def test_what_a_run_is_called_is_text_and_never_markup(world: World, api: TestClient) -> None:
    workspace = world.folder / "workspace"
    index = RunIndex(workspace=Workspace.open(str(workspace)))
    named = "<script>alert('1')</script>"
    record = RunRecord(
        path="page_a/t/r/g1", dag_id="page_a", task_id=named, run_id=f'r">{named}', provider="openai",
        model=named, target=named, started=1.9e9, rows=3, user=named,
    )  # fmt: skip
    index._add(record)

    shown = Reader(api, "otto").get("/").text

    assert "&lt;script&gt;alert" in shown
    assert "<script>alert" not in shown


def test_a_workspace_that_cannot_be_read_is_named_with_what_is_missing(
    world: World, api: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reader = Reader(api, "anna")
    (tmp_path / "workspace").mkdir()
    empty = reader.get("/")
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__WORKSPACE", str(tmp_path / "nowhere"))

    missing = reader.get("/spend")

    assert (empty.status_code, missing.status_code) == (200, 503)
    assert "No runs yet" in empty.text
    assert f"The workspace {tmp_path}/nowhere cannot be used" in missing.text
    assert not (tmp_path / "nowhere").exists()
