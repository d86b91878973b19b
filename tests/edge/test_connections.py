"""From Airflow's connections to providers, warehouses and the workspace."""

import json
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import InputError, MissingExtra, Refused
from airflow_batch_llm.hooks import arguments
from airflow_batch_llm.hooks.arguments import check_database_params, check_params
from airflow_batch_llm.hooks.llm import llm_provider
from airflow_batch_llm.hooks.object_storage import open_path, open_workspace
from airflow_batch_llm.hooks.warehouse import DuckDBHook, warehouse
from airflow_batch_llm.providers import connect as connect_provider
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.warehouses import own_types
from tests.edge.conftest import World
from tests.edge.tasks import transform


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    def connect(conn_id: str, **fields: Any) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))

    return connect


@pytest.mark.parametrize(
    ("model_id", "fields"),
    [
        ("anthropic:claude-haiku-4-5", {"conn_type": "anthropic"}),
        ("anthropic:claude-haiku-4-5", {"conn_type": "pydanticai"}),
        ("anthropic:claude-haiku-4-5", {"conn_type": "generic"}),
        ("openai:gpt-5-mini", {"conn_type": "openai"}),
        ("openai:gpt-5-mini", {"conn_type": "pydanticai"}),
    ],
)
async def test_a_connection_with_a_key_and_a_host_reaches_its_provider(
    world: World, connect: Any, model_id: str, fields: dict[str, Any]
) -> None:
    url = world.simulator.openai_url if model_id.startswith("openai") else world.simulator.url
    connect("llm", host=url, password="any", **fields)
    provider = llm_provider("llm", model_id)

    try:
        assert provider.host == "127.0.0.1"
        with pytest.raises(Refused, match="404"):  # it has answered
            provider.check(["unknown"])
        with pytest.raises(Refused, match="404"):
            await provider.acheck(["unknown"])
    finally:
        provider.close()
        await provider.aclose()


async def test_what_only_the_official_anthropic_hook_can_open_is_opened_by_it(
    world: World, connect: Any, tmp_path: Path
) -> None:
    pytest.importorskip("airflow.providers.anthropic", reason="an Airflow older than this hook")
    token = tmp_path / "token"
    token.write_text("an identity token")
    identity = {"identity_token_file": str(token), "federation_rule_id": "rule", "organization_id": "org"}
    connect("llm", conn_type="anthropic", host=world.simulator.url, extra={"workload_identity": identity})
    provider = llm_provider("llm", "anthropic:claude-haiku-4-5")

    client = provider._access.client()
    twin = provider._access.async_client()

    assert (type(client).__name__, type(twin).__name__) == ("Anthropic", "AsyncAnthropic")
    assert client.api_key is None
    assert provider.host == "127.0.0.1"
    client.close()
    await twin.close()
    provider.close()


async def test_workload_identity_for_openai_is_read_by_the_official_hook(world: World, connect: Any) -> None:
    openai_provider = pytest.importorskip("airflow.providers.openai")
    if Version(openai_provider.__version__) < Version("2"):
        pytest.skip("an Airflow older than this hook's workload identity")
    extra = {
        "auth_type": "workload_identity",
        "identity_provider_id": "idp",
        "service_account_id": "sa",
        "workload_identity_provider": "kubernetes",
    }
    connect("llm", conn_type="openai", host=world.simulator.openai_url, extra=extra)
    provider = llm_provider("llm", "openai:gpt-5-mini")

    client = provider._access.client()
    twin = provider._access.async_client()

    assert (
        twin.workload_identity["service_account_id"] == client.workload_identity["service_account_id"] == "sa"
    )
    client.close()
    await twin.close()


def test_vertex_on_a_host_that_is_not_googles_needs_no_credentials(world: World, connect: Any) -> None:
    extra = {"base_url": world.simulator.url, "staging": "gs://bucket/folder", "project": "p"}
    connect("google_cloud_default", conn_type="google_cloud_platform", extra=extra)

    assert llm_provider(None, "vertex:gemini-2.5-flash").host == "127.0.0.1"


def test_an_unknown_parameter_for_vertex_is_named(connect: Any) -> None:
    connect("google_cloud_default", conn_type="google_cloud_platform")

    with pytest.raises(
        InputError,
        match=r"llm_hook_params has 'region' for vertex\. It may have base_url, impersonation_chain",
    ):
        llm_provider(None, "vertex:gemini-2.5-flash", {"region": "x"})


@pytest.mark.parametrize(
    ("conn_type", "model_id"),
    [
        ("openai", "anthropic:claude"),
        ("google_cloud_platform", "openai:gpt"),
        ("pydanticai_azure", "openai:gpt"),
    ],
)
def test_a_connection_of_another_vendor_is_refused(connect: Any, conn_type: str, model_id: str) -> None:
    connect("llm", conn_type=conn_type)

    with pytest.raises(InputError, match=f"of type '{conn_type}' does not lead to"):
        llm_provider("llm", model_id)


def test_a_provider_can_be_made_in_a_thread(world: World) -> None:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(llm_provider(None, "anthropic:claude")))

    thread.start()
    thread.join()

    assert made[0].host == "127.0.0.1"


def test_sqlite_is_a_warehouse_by_its_official_connection(connect: Any, tmp_path: Path) -> None:
    connect("db", conn_type="sqlite", host=str(tmp_path / "some.db"))
    database = warehouse("db", argument="source_conn_id")

    assert database.read(Source(sql="SELECT 7 AS n")).read_all().to_pylist() == [{"n": 7}]
    database.close()


def test_a_duckdb_connection_is_tested_by_reading_the_file(connect: Any, world: World) -> None:
    assert DuckDBHook("warehouse").test_connection() == (True, "The file can be read.")


@pytest.mark.parametrize("host", [None, "/nowhere/at/all.duckdb"])
def test_a_duckdb_connection_to_no_file_says_so(connect: Any, host: str | None) -> None:
    connect("db", conn_type="duckdb", host=host)

    passed, said = DuckDBHook("db").test_connection()

    assert not passed
    assert said


def test_a_connection_that_is_no_database_is_refused(connect: Any) -> None:
    connect("files", conn_type="fs")

    with pytest.raises(InputError, match="is not one of a database"):
        warehouse("files", argument="source_conn_id")


@pytest.mark.parametrize("executor", ["LocalExecutor", "airflow.executors.local_executor.LocalExecutor"])
def test_tasks_on_one_disk_have_a_default_workspace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, executor: str
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))

    assert open_workspace().uri == f"file://{tmp_path}/batch_llm"


@pytest.mark.parametrize("executor", ["CeleryExecutor", "LocalExecutor,KubernetesExecutor"])
@pytest.mark.parametrize("workspace", [None, "file:///tmp/x", "/tmp/x"])
def test_a_folder_that_not_every_worker_sees_is_refused(
    monkeypatch: pytest.MonkeyPatch, executor: str, workspace: str | None
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)

    with pytest.raises(InputError, match="the executor spreads tasks over machines"):
        open_workspace(workspace)


def test_a_shared_mount_may_be_declared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__SHARED_WORKSPACE", "True")

    assert open_workspace(str(tmp_path)).uri == str(tmp_path)


def test_hook_params_of_another_type_are_refused_with_the_list(world: World) -> None:
    with pytest.raises(
        InputError, match=r"hook_params has 'role' for duckdb\. It may have lock_wait_seconds"
    ):
        warehouse("warehouse", {"role": "x"}, argument="source_conn_id")


def test_the_list_of_hook_params_can_be_extended(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__HOOK_PARAMS", "max_tokens, region")
    check_params(llm_hook_params={"max_tokens": 7}, source_hook_params={"region": "eu"})

    package = tmp_path / "other-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[airflow_batch_llm.hook_params]\nacme = other_params:NAMES\n")
    (tmp_path / "other_params.py").write_text("NAMES = {'cluster'}\n")
    monkeypatch.syspath_prepend(tmp_path)
    check_database_params("acme", {"cluster": "small"})
    with pytest.raises(InputError, match="'cluster' for postgres"):
        check_database_params("postgres", {"cluster": "small"})


def test_the_lists_of_hook_params_are_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/production.md").read_text()
    databases = [kind.hook_params for kind in own_types()]
    lists = [*databases, *arguments.PROVIDERS.values(), arguments.FILES]

    for names in lists:
        assert f"| {', '.join(f'`{name}`' for name in sorted(names))} |" in page


@pytest.mark.parametrize(
    ("find", "argument"),
    [
        (lambda: warehouse("nowhere", argument="source_conn_id"), "source_conn_id"),
        (lambda: llm_provider("nowhere", "openai:gpt-5-mini"), "llm_conn_id"),
        pytest.param(
            lambda: open_path("s3://nowhere@bucket/rows.csv"),
            "s3://nowhere@bucket/rows.csv",
            marks=pytest.mark.skipif(
                find_spec("airflow.providers.amazon") is None, reason="Airflow's provider for S3"
            ),
        ),
    ],
)
def test_a_connection_that_does_not_exist_is_named_with_its_argument(
    airflow_database: None, find: Callable[[], object], argument: str
) -> None:
    with pytest.raises(InputError, match=f"'nowhere', which .*{argument}") as missing:
        find()

    assert "airflow connections add nowhere" in str(missing.value)
    assert missing.value.__context__ is None


def test_the_default_connection_is_named_where_none_is_given(
    airflow_database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_OPENAI_DEFAULT", raising=False)

    with pytest.raises(InputError, match="'openai_default', which llm_conn_id"):
        llm_provider(None, "openai:gpt-5-mini")


def test_a_provider_that_does_not_exist_is_refused_while_the_dag_is_read(airflow_database: None) -> None:
    with pytest.raises(InputError, match=r"called 'antropic'\. Is it 'anthropic'\?"):
        transform(model_id="antropic:claude-haiku-4-5")


def test_a_type_of_connection_without_its_provider_names_the_package(world: World, connect: Any) -> None:
    connect("db", conn_type="mysql", host="db.example")

    with pytest.raises(InputError, match="pip install 'apache-airflow-providers-mysql'"):
        warehouse("db", argument="source_conn_id")


def test_an_sdk_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)

    with pytest.raises(
        MissingExtra, match=r"needs the Python package openai, .* 'airflow-batch-llm\[openai\]'"
    ):
        connect_provider("openai", Access(api_key="any")).check(["unknown"])
