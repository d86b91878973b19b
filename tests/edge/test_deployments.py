"""Two Airflow deployments with the same Dag on one workspace: each answers its own rows into its own table."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import psycopg
import pytest
from airflow.sdk import DAG
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from airflow_batch_llm.operators.llm_batch import CollectLLMBatchOperator, SubmitLLMBatchOperator
from tests.edge.conftest import TICKETS, World
from tests.edge.dag_runs import failures, states, xcom
from tests.edge.logs import told
from tests.edge.tasks import arguments, transform

Run = Callable[..., Any]

#: Both deployments have this Dag run.
SAME_RUN = dict.fromkeys(["logical_date", "run_after"], datetime(2026, 11, 20, tzinfo=UTC))


class Deployment:
    """A deployment's name in the configuration, and its database."""

    def __init__(self, connection: dict[str, Any], query: Callable[[str], list[Any]]) -> None:
        self.connection, self.query = connection, query

    @contextmanager
    def __call__(self, monkeypatch: pytest.MonkeyPatch, name: str = "") -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(self.connection))
            patch.setenv("AIRFLOW__BATCH_LLM__DEPLOYMENT", name)
            yield

    def labels(self) -> int:
        return int(self.query("SELECT count(*) FROM labels WHERE topic IS NOT NULL")[0][0])


def in_duckdb(world: World, name: str) -> Deployment:
    path = world.folder / f"{name}.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE tickets (ticket_id INTEGER, subject VARCHAR, body VARCHAR)")
        connection.executemany("INSERT INTO tickets VALUES (?, ?, ?)", TICKETS)

    def query(sql: str) -> list[Any]:
        with duckdb.connect(path) as connection:
            return connection.execute(sql).fetchall()

    return Deployment({"conn_type": "duckdb", "host": str(path)}, query)


def in_postgres(server: str) -> Deployment:
    name = f"d{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    uri = make_conninfo(server, dbname=name)
    with psycopg.connect(uri) as connection:
        connection.execute("CREATE TABLE tickets (ticket_id integer, subject text, body text)")
        for ticket in TICKETS:
            connection.execute("INSERT INTO tickets VALUES (%s, %s, %s)", ticket)

    def query(sql: str) -> list[Any]:
        with psycopg.connect(uri) as connection:
            return connection.execute(sql.encode()).fetchall()

    given = conninfo_to_dict(uri)
    return Deployment(
        {
            "conn_type": "postgres",
            "host": given["host"],
            "login": given["user"],
            "password": "s3cret",
            "schema": name,
        },
        query,
    )


@pytest.fixture(params=["duckdb", "postgres"])
def pair(request: pytest.FixtureRequest, world: World) -> tuple[Deployment, Deployment]:
    """Two deployments, each with the same twelve tickets in a database of its own."""
    if request.param == "duckdb":
        return in_duckdb(world, "staging"), in_duckdb(world, "production")
    server = request.getfixturevalue("postgres_uri")
    return in_postgres(server), in_postgres(server)


@pytest.mark.parametrize("names", [("staging", "production"), ("", "")])
def test_the_same_run_answers_into_the_own_table_of_each_deployment(
    world: World,
    run: Run,
    pair: tuple[Deployment, Deployment],
    names: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with DAG(f"labels_of_{names[0] or 'nobody'}", schedule=None) as dag:
        transform(deferrable=True)

    for deployment, name in zip(pair, names, strict=True):
        with deployment(monkeypatch, name):
            for _ in range(2):  # a retry pays nothing
                done = run(dag, **SAME_RUN)
                assert states(done) == {"label": "success"}
                assert xcom(done, "label")["why"] == {"new": len(TICKETS)}

    assert [deployment.labels() for deployment in pair] == [len(TICKETS)] * 2
    assert world.rows_charged() == 2 * len(TICKETS)
    kept = [file.read_bytes() for file in (world.folder / "workspace").rglob("*") if file.is_file()]
    assert not any(b"s3cret" in data for data in kept), "a password is in the workspace"
    folders = {path.name for path in (world.folder / "workspace").iterdir()} - {".registers"}
    assert folders == ({f"deployment={name}" for name in names} if names[0] else {dag.dag_id})


def test_an_unfinished_run_of_another_database_is_refused_and_left_alone(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, production = in_duckdb(world, "staging"), in_duckdb(world, "production")
    with DAG("refused_here", schedule=None) as dag:
        SubmitLLMBatchOperator(**arguments(task_id="submit"))
    with production(monkeypatch):
        handle = xcom(run(dag, **SAME_RUN), "submit")

    with staging(monkeypatch), failures() as failed:
        assert states(run(dag, **SAME_RUN)) == {"submit": "failed"}

    said = str(failed[0])
    assert "production.duckdb, and this one is for main.labels in file://" in said
    assert "staging.duckdb. If two deployments share the workspace, set [batch_llm] deployment" in said
    with DAG("collects_there", schedule=None) as collecting:
        CollectLLMBatchOperator(task_id="collect", handle=handle)
    with staging(monkeypatch):
        assert states(run(collecting)) == {"collect": "failed"}, "it would land in another database"
    with production(monkeypatch):
        assert states(run(collecting)) == {"collect": "success"}
    assert production.labels() == len(TICKETS)
    assert world.rows_charged() == len(TICKETS)


def test_a_collector_takes_the_unfinished_runs_of_its_own_deployment_and_database(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = in_duckdb(world, "first"), in_duckdb(world, "second")
    sent: dict[str, Path] = {}
    for name, deployment, called in (("one", first, "a"), ("two", first, "b"), ("three", second, "a")):
        with DAG(f"sends_{name}", schedule=None) as dag:
            rows = f"SELECT * FROM tickets WHERE ticket_id % 3 = {len(sent)}"
            SubmitLLMBatchOperator(**arguments(task_id="submit", source_table=None, source_sql=rows))
        with deployment(monkeypatch, called):
            sent[name] = Path(xcom(run(dag), "submit")["run"])
    with DAG("collects_own", schedule=None) as collecting:
        CollectLLMBatchOperator(task_id="collect", pending_for="labels")

    with first(monkeypatch, "a"), told() as log:
        done = run(collecting)

    assert [report["request_count"] for report in xcom(done, "collect")] == [4]
    assert log.tells(f"{sent['three']} is for main.labels in file://")
    assert (first.labels(), second.labels()) == (4, 0)
