"""Creations and uploads whose answers are lost, on each object storage, through a hop that breaks connections."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_batch_llm.errors import StoreError, StoreUnavailable, StoreUnreadable
from airflow_batch_llm.store import Workspace
from tests.hop import Fault, Hop, hop_to
from tests.store.servers import open_azure, open_gcs, open_s3

OPEN: dict[str, Callable[..., Workspace]] = {"azure": open_azure, "gcs": open_gcs, "s3": open_s3}
# What creates or replaces an object: one request, or the one that ends an upload in parts.
WRITE = r"^(PUT|POST) .*(upload/storage|plan\.json|file\.jsonl)"
LAST_PART = r"^(PUT|POST) .*(upload_id=|uploadId=[^&]*$|runs/file\.jsonl$)"


@pytest.fixture(params=sorted(OPEN))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def hop(kind: str, request: pytest.FixtureRequest) -> Iterator[Hop]:
    with hop_to(request.getfixturevalue(kind)) as hop:
        yield hop


@pytest.fixture
def workspace(kind: str, hop: Hop, folder: str) -> Workspace:
    return OPEN[kind](hop.endpoint, folder)


@pytest.fixture
def direct(kind: str, folder: str, request: pytest.FixtureRequest) -> Workspace:
    return OPEN[kind](request.getfixturevalue(kind), folder)


def test_a_creation_whose_answer_is_lost_is_recognised_as_ours(workspace: Workspace, hop: Hop) -> None:
    lost = hop.spoil(Fault.LOSE_ANSWER, WRITE)
    assert workspace.create("plan.json", b'{"nonce":1}')
    assert lost.hits == 1
    assert workspace.read("plan.json") == b'{"nonce":1}'


def test_an_append_whose_answer_is_lost_takes_one_number(workspace: Workspace, hop: Hop) -> None:
    assert workspace.append("plan.json", b'{"nonce":1}') == 1
    hop.spoil(Fault.LOSE_ANSWER, WRITE)
    assert workspace.append("plan.json", b'{"nonce":2}') == 2
    assert [data for _, data in workspace.records("plan.json")] == [b'{"nonce":1}', b'{"nonce":2}']


def test_a_lost_refusal_is_still_a_refusal(workspace: Workspace, direct: Workspace, hop: Hop) -> None:
    direct.create("plan.json", b'{"nonce":"theirs"}')
    lost = hop.spoil(Fault.LOSE_ANSWER, WRITE)
    assert not workspace.create("plan.json", b'{"nonce":"ours"}')
    assert lost.hits == 1


def test_an_outage_is_waited_out(workspace: Workspace, hop: Hop) -> None:
    hop.spoil(Fault.REFUSE, WRITE)
    assert workspace.create("plan.json", b'{"nonce":1}')


def test_a_file_whose_upload_is_not_acknowledged_is_there_whole(
    workspace: Workspace, hop: Hop, tmp_path: Path
) -> None:
    for number, size in enumerate((1000, 20_000_000)):
        content = bytes([65 + number]) * size
        (tmp_path / "source").write_bytes(content)
        lost = hop.spoil(Fault.LOSE_ANSWER, LAST_PART if size > 1000 else WRITE)
        workspace.put("file.jsonl", tmp_path / "source")
        assert lost.hits == 1
        assert workspace.get("file.jsonl", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content


def test_a_read_that_is_cut_off_is_repeated(workspace: Workspace, direct: Workspace, hop: Hop) -> None:
    direct.create("plan.json", b'{"nonce":"' + b"x" * 100_000 + b'"}')
    cut = hop.spoil(Fault.CUT_ANSWER, r"^GET .*plan\.json")
    assert workspace.read("plan.json") == direct.read("plan.json")
    assert cut.hits == 1


def test_a_record_that_may_not_be_read_is_not_absent(workspace: Workspace, hop: Hop) -> None:
    hop.spoil(Fault.FORBID, r"^(GET|HEAD) ", times=None)
    with pytest.raises(StoreUnreadable, match="unknown"):
        workspace.read("plan.json")
    with pytest.raises(StoreUnreadable, match="unknown"):
        list(workspace.records("journal"))
    with pytest.raises(StoreUnreadable, match="unknown"):
        workspace.blocks("file.jsonl")
    with pytest.raises(StoreUnreadable, match="unknown"):
        workspace.names("journal")


def test_a_write_that_is_forbidden_says_what_to_grant(workspace: Workspace, hop: Hop, tmp_path: Path) -> None:
    hop.spoil(Fault.FORBID, r"^(PUT|POST) ", times=None)
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(StoreError, match="grant creating") as refused:
        workspace.create("plan.json", b'{"nonce":1}')
    assert not refused.value.retryable
    with pytest.raises(StoreError, match="grant creating"):
        workspace.put("file.jsonl", tmp_path / "source")


def test_a_creation_that_fails_and_cannot_be_looked_at_is_of_unknown_fate(
    workspace: Workspace, hop: Hop
) -> None:
    hop.spoil(Fault.FORBID, "^(GET|HEAD|PUT|POST) ", times=None)
    with pytest.raises(StoreUnreadable):
        workspace.create("plan.json", b'{"nonce":1}')


def test_a_bucket_that_does_not_exist_is_named(kind: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(StoreError) as missing:
        OPEN[kind](request.getfixturevalue(kind), "runs", "nowhere")

    assert "There is no bucket or container 'nowhere'" in str(missing.value)
    assert "Create it, or change `workspace`" in str(missing.value)
    assert not missing.value.retryable


def test_a_machine_without_credentials_is_told_how_to_give_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(
        StoreUnavailable, match=r"no credentials were found for s3://bucket/runs.*Give this process"
    ):
        Workspace.open("s3://bucket/runs")


def test_a_delete_whose_answer_is_lost_has_deleted(workspace: Workspace, hop: Hop) -> None:
    workspace.create("plan.json", b'{"nonce":1}')
    hop.spoil(Fault.LOSE_ANSWER, "^DELETE ")
    workspace.delete("plan.json")
    assert workspace.read("plan.json") is None
