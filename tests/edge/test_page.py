"""The page in Airflow's API server, asked by users of its auth manager, about runs of real tasks."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from airflow.sdk import DAG, BaseOperator
from fastapi.testclient import TestClient

from airflow_batch_llm.core.settings import Request
from airflow_batch_llm.decorators import _DecoratedOperator
from airflow_batch_llm.demo.story import tiles
from airflow_batch_llm.links import RunPageLink
from airflow_batch_llm.operators.llm_evaluate import LLMEvaluateOperator
from airflow_batch_llm.operators.llm_transform_group import PlanRunOperator
from airflow_batch_llm.operators.run import RunOperator
from airflow_batch_llm.plugins.llm_batches import task_tab
from airflow_batch_llm.sensors.llm_batch import LLMBatchSensor
from airflow_batch_llm.stage.records.run_index import RunIndex, RunRecord
from airflow_batch_llm.store import Workspace
from tests.edge.conftest import TICKETS, World
from tests.edge.dag_runs import synchronised
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


def test_a_run_shows_what_packing_reuse_and_the_vendors_cache_did_where_they_were_used(
    world: World, run: Run, api: TestClient
) -> None:
    world.simulator.turn(cached_tokens=5)
    run(dag("page_a", request=Request(rows_per_request=3), guards={"min_agreement": None}))
    world.simulator.turn(cached_tokens=0)
    twins = "SELECT ticket_id + 100 AS ticket_id, subject, body FROM tickets"
    run(dag("page_b", source_table=..., source_sql=twins))

    (of_a,), (of_b,) = Reader(api, "anna").links(), Reader(api, "bert").links()
    packed, reused = (re.sub(r"<[^>]+>", " ", Reader(api, "otto").get(one).text) for one in (of_a, of_b))

    requests = -(-len(TICKETS) // 3)
    assert f"{len(TICKETS)} rows in {requests} requests, {len(TICKETS) / requests:.1f} for each" in packed
    assert re.search(r"default\s+no\s+100.0 %\s+\d+\s+0\s+won \$0\.", packed)
    assert "Copied answers" not in packed
    assert f"{len(TICKETS)} rows without a request" in reused
    assert not re.search("Packing|The vendor's cache", reused)


def test_what_a_run_is_called_is_text_and_never_markup(world: World, api: TestClient) -> None:
    synchronised(dag("page_a"))
    workspace = world.folder / "workspace"
    index = RunIndex(workspace=Workspace.open(str(workspace)))
    named = "<script>alert('1')</script>"
    record = RunRecord(
        path="page_a/t/r/g1", dag_id="page_a", task_id=named, run_id=f'r">{named}', provider="openai",
        model=named, target=named, started=1.9e9, rows=3, user=named,
    )  # fmt: skip
    index._add(record)
    index._add(replace(record, path="page_a/t/damaged/g1", task_id="damaged"))
    damaged = next(one for one in workspace.rglob("*~begun~*") if b"damaged" in one.read_bytes())
    damaged.chmod(0o600)
    damaged.write_bytes(damaged.read_bytes()[:-9])

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


def test_the_tab_of_a_task_leads_to_its_run_and_that_of_another_lists_the_runs_of_its_dag_run(
    world: World, run: Run, api: TestClient
) -> None:
    with DAG("page_a", schedule=None) as dag_a:
        transform(partial=True, target=...).expand(target=["first", "second"])
    done = run(dag_a)
    names = {"run_id": done.run_id, "task_id": "label"}

    def tab(name: str = "anna", **changes: str) -> Any:
        return Reader(api, name).get(f"/dags/page_a/task?{urlencode({**names, **changes})}")

    mapped = [tab(map_index=str(index)).headers["location"] for index in (0, 1)]
    later = tab(task_id="collect", map_index="{MAP_INDEX}")
    shown = [Reader(api, "anna").get(link.removeprefix(PAGE)).text for link in mapped]

    assert [re.findall(r"<h2>label \[(\d)\]</h2>", text) for text in shown] == [["0"], ["1"]]
    assert {link.replace("&", "&amp;") for link in mapped} == set(
        re.findall(r'href="([^"]+/run\?[^"]+)"', later.text)
    )
    assert "No run yet" in tab(run_id="another").text
    assert tab("bert").status_code == 403
    assert api.get(f"{PAGE}/dags/page_a/task?{urlencode(names)}").status_code == 401


def test_the_tab_is_on_the_tasks_of_this_package_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    (tab,) = task_tab("3.4.0b2")
    linked = {
        getattr(one, "custom_operator_name", one.__name__)
        for one in _below(BaseOperator)
        if one.__module__.startswith("airflow_batch_llm.")
        and RunPageLink in map(type, one.operator_extra_links)
    }
    bases = {name for name in linked if name.startswith("_")} | {RunOperator.__name__, "PlannedRunOperator"}

    assert set(tab["applies_to"]["operator_name"]) == linked - bases
    named = {one.__name__ for one in (LLMBatchSensor, LLMEvaluateOperator, PlanRunOperator)}
    assert {_DecoratedOperator.custom_operator_name, *named} <= linked
    assert task_tab("3.3.2") == []
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__TASK_TAB", "True")
    assert task_tab("3.3.2") == [tab]


def test_spending_is_read_from_the_ledger_and_from_the_reports_where_there_is_none(
    world: World, run: Run, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(dag("page_a"))
    reports = Reader(api, "anna").get("/spend")
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__USAGE_TABLE", "bill")
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__USAGE_CONN_ID", "warehouse")
    run(dag("page_b", target="b_labels"))
    world.execute("UPDATE bill SET usd = 1234.5")
    pages = {name: Reader(api, name).get("/spend") for name in ("anna", "bert", "otto")}
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__USAGE_TABLE", "nowhere")
    broken = Reader(api, "anna").get("/spend")

    assert {name: tiles(page.text)["Spent"] for name, page in pages.items()} == {
        "anna": "$0.00",  # her run is not in the ledger
        "bert": "$1,234.50",
        "otto": "$1,234.50",
    }
    assert "From the ledger <code>bill</code>" in pages["bert"].text
    assert "page_b" not in pages["anna"].text
    assert tiles(reports.text) == tiles(broken.text)
    assert tiles(reports.text)["Rows"] == str(len(TICKETS))
    assert "no ledger is configured" in reports.text
    assert "the ledger <code>nowhere</code> cannot be read" in broken.text


def _below(kind: type) -> Iterator[Any]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)
