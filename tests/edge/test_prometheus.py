"""Real runs in a real Prometheus: every panel of the dashboard shows something, and every alert fires.

Skipped without `prometheus` and `promtool` (`apt-get install prometheus`). `Exporter` does what statsd_exporter does with
the mapping that ships.
"""

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from airflow.sdk import DAG

from airflow_batch_llm.core.settings import Guards, Request, Route
from airflow_batch_llm.hooks.monitoring import gauge_open_since
from airflow_batch_llm.operators.llm_evaluate import LLMEvaluateOperator
from tests import monitoring
from tests.edge.conftest import World
from tests.edge.dag_runs import run_dag, states
from tests.edge.statsd import Receiver, receiving
from tests.edge.tasks import arguments, transform

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="no Prometheus is installed",
)

_SECONDS = 60.0


@dataclass
class Exporter:
    """The values that Prometheus reads: the last value of each gauge, the sum of each counter."""

    receiver: Receiver
    rules: list[monitoring.Rule] = field(default_factory=monitoring.mapping)
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)

    def page(self) -> str:
        for one in self.receiver.samples():
            name, labels = monitoring.in_prometheus(self.rules, one.name)
            key = name, tuple(sorted({**one.tags, **labels}.items()))
            self.values[key] = one.value + (self.values.get(key, 0.0) if one.kind == "c" else 0.0)
        return "".join(
            f"{name}{{{','.join(f'{key}={json.dumps(text)}' for key, text in labels)}}} {value}\n"
            for (name, labels), value in self.values.items()
        )

    @contextmanager
    def served(self) -> Iterator[int]:
        """Serve the page on a port of loopback."""
        exporter = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = exporter.page().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield server.server_address[1]
            finally:
                server.shutdown()
                thread.join()


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        reply = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}).json()
        assert reply["status"] == "success", reply
        return list(reply["data"]["result"])

    def until(self, expression: str) -> list[dict[str, Any]]:
        """Wait for the expression to have a value."""
        ends = time.monotonic() + _SECONDS
        while time.monotonic() < ends:
            if found := self.query(expression):
                return found
            time.sleep(0.5)
        raise AssertionError(f"no value in {_SECONDS:g} seconds: {expression}")


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[Prometheus]:
    """Run Prometheus on loopback, with the alert rules that ship."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(monitoring.ALERTS)],
        "scrape_configs": [{"job_name": "airflow", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield Prometheus(_ready(f"http://127.0.0.1:{port}"))
        finally:
            process.terminate()
            process.wait()


def _ready(url: str) -> str:
    ends = time.monotonic() + _SECONDS
    while time.monotonic() < ends:
        try:
            if httpx.get(f"{url}/-/ready").status_code == 200:
                return url
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("Prometheus did not start")


def test_the_rules_fire_when_they_should_and_not_before() -> None:
    command = ["promtool", "test", "rules", "alerts_test.yml"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_panel_shows_something_and_every_alert_fires(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        receiving(monkeypatch) as receiver,
        Exporter(receiver).served() as target,
        prometheus(tmp_path, target) as known,
    ):
        monkeypatch.setenv("AIRFLOW__BATCH_LLM__BUDGETS", '{"support": {"usd": 0.01, "per": "all"}}')
        night()
        known.until("airflow_batch_llm_cost_usd")
        world.execute("UPDATE tickets SET body = body || '!'")
        world.simulator.turn(reasoning_tokens=4000)  # it costs more than estimated
        world.simulator.fault(provider="anthropic", kind="refused", rows=[0], times=None)
        world.simulator.fault(provider="anthropic", kind="repeat", endpoint="create")
        night()
        evaluate(world)
        gauge_open_since(time.time() - 13 * 3600, dag_id="stuck", task_id="label")
        known.until("airflow_batch_llm_evaluation_accuracy")
        known.until("increase(airflow_batch_llm_rows_total[1d]) > 0")

        for alert in monitoring.alerts():
            known.until(f'ALERTS{{alertstate="firing", alertname="{alert}"}}')
        empty = [one for one in monitoring.queries() if not known.query(_filled(one.expression))]
        assert empty == []


def _filled(expression: str) -> str:
    """Put in for variables what Grafana does if all is chosen."""
    return expression.replace("$dag_id", ".*").replace("$task_id", ".*")


def night() -> None:
    """Label the tickets by two routes, in packed requests."""
    with DAG("nightly", schedule=None) as dag:
        transform(
            source_table=...,
            source_sql="SELECT *, CASE WHEN ticket_id <= 3 THEN 'urgent' END AS how FROM tickets",
            request=Request(rows_per_request=3),
            guards=Guards(min_agreement=None, max_attempts=1),
            routes={"urgent": Route(way="now")},
            route_column="how",
            budget="support",
            max_cost_usd=0.01,
        )
    assert set(states(run_dag(dag)).values()) == {"success"}


def evaluate(world: World) -> None:
    world.execute("CREATE TABLE golden AS SELECT *, 'bug' AS expected_topic FROM tickets")
    with DAG("evaluated", schedule=None) as dag:
        LLMEvaluateOperator(
            **arguments(source_table="golden", target="evaluated", expected={"topic": "expected_topic"})
        )
    assert set(states(run_dag(dag)).values()) == {"success"}
