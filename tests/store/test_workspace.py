"""The URIs that name a workspace, the paths in it, and the imports of its use."""

import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.registry import _registry

from airflow_batch_llm.errors import InputError, MissingExtra, StoreUnsafe
from airflow_batch_llm.store import Workspace


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_folder_is_named_by_its_path_or_its_uri(tmp_path: Path, form: str) -> None:
    workspace = Workspace.open(form.format(tmp_path / "a b%20c"))
    workspace.create("plan.json", b"{}")
    assert (tmp_path / "a b%20c" / "plan.json").read_bytes() == b"{}"


def test_a_relative_path_is_below_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace.open("runs")
    monkeypatch.chdir("/")
    workspace.create("plan.json", b"{}")
    assert (tmp_path / "runs" / "plan.json").exists()


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("file://host/runs", "file:///absolute/path"),
        ("ftp://host/runs", "gs://"),
        ("sftp://host/runs", "create a record for one writer only"),
        ("gs://", "gs://bucket/folder"),
        ("s3:///", "s3://bucket/folder"),
    ],
)
def test_a_uri_that_cannot_be_a_workspace_is_refused_with_what_to_write(uri: str, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        Workspace.open(uri)


def test_memory_is_refused_unless_a_file_system_is_handed_in() -> None:
    with pytest.raises(StoreUnsafe, match="lost with the process"):
        Workspace.open("memory://runs")


def test_a_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    # fsspec keeps the class that another test of this process has loaded.
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(MissingExtra, match=r"airflow-batch-llm\[s3\]"):
        Workspace.open("s3://bucket/runs")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/plan.json",
        "a//b",
        "a/",
        "../a",
        "a/./b",
        "a/../b",
        ".tmp-1",
        "a*",
        "a?b",
        "a#1",
        "a[1]",
        "a\\b",
        "a\nb",
    ],
)
def test_a_path_that_some_storage_would_read_otherwise_is_refused(tmp_path: Path, path: str) -> None:
    workspace = Workspace.open(str(tmp_path))
    with pytest.raises(ValueError, match="path"):
        workspace.create(path, b"{}")
    with pytest.raises(ValueError, match="path"):
        workspace.delete_folder(path)


def test_a_record_that_would_need_several_requests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="put a file"):
        Workspace.open(str(tmp_path)).create("plan.json", b"x" * ((16 << 20) + 1))


def test_a_workspace_says_where_it_is(tmp_path: Path) -> None:
    assert repr(Workspace.open(str(tmp_path))) == f"Workspace('{tmp_path}')"


def test_importing_the_store_loads_no_client() -> None:
    code = (
        "import sys, airflow_batch_llm.store\n"
        "print([name for name in ('fsspec', 'gcsfs', 's3fs', 'adlfs', 'aiohttp', 'pyarrow', 'airflow') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"
