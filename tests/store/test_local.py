"""Cases of a disk: crashes, a full disk, links that are missing, mounts that go away."""

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from airflow_batch_llm.errors import StoreError, StoreUnavailable, StoreUnreadable, StoreUnsafe
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.testing.store import is_whole

RECORD = b'{"nonce":1}'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture
def workspace(root: Path) -> Workspace:
    return Workspace.open(str(root))


def run_python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


WRITER = """
    import itertools, sys
    from pathlib import Path
    from airflow_batch_llm.store import Workspace
    from airflow_batch_llm.testing.store import content
    workspace = Workspace.open(sys.argv[1], probe=False)
    author, source = int(sys.argv[2]), Path(sys.argv[3])
    print("ready", flush=True)
    for number in itertools.count(1):
        workspace.append("journal", content(author, number))
        source.write_bytes(b"ab"[number % 2 :][:1] * 300_000)
        workspace.put("file.jsonl", source)
        print(number, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_only_whole_records(
    workspace: Workspace, root: Path, tmp_path: Path
) -> None:
    for author in range(12):
        writer = run_python(WRITER, root, author, tmp_path / "source")
        assert writer.stdout
        for _ in range(1 + author):
            writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        records = list(workspace.records("journal"))
        assert all(is_whole(data) for _, data in records)
        assert len(workspace.names("journal")) == len(records)
        content = workspace.read("file.jsonl") or b"a" * 300_000
        assert content in (b"a" * 300_000, b"b" * 300_000)
    assert len(records) >= 12


def test_a_full_disk_leaves_no_part_of_a_record_and_says_what_to_do(workspace: Workspace, root: Path) -> None:
    # A limit on the size of files stops a write in its middle as a full disk does.
    writer = run_python(
        """
        import resource, signal, sys
        from airflow_batch_llm.errors import StoreUnavailable
        from airflow_batch_llm.store import Workspace
        workspace = Workspace.open(sys.argv[1], probe=False)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            workspace.create("run/plan.json", b"x" * 10_000)
        except StoreUnavailable as error:
            print(error)
        """,
        root,
    )
    output, _ = writer.communicate()
    assert b"Free space" in output
    assert workspace.read("run/plan.json") is None
    assert list((root / "run").iterdir()) == []
    assert workspace.create("run/plan.json", RECORD)


def test_a_record_behind_something_that_is_not_a_folder_is_not_absent(workspace: Workspace) -> None:
    workspace.create("run", RECORD)
    with pytest.raises(StoreUnreadable, match="unknown"):
        workspace.read("run/plan.json")
    with pytest.raises(StoreUnreadable, match="unknown"):
        workspace.names("run")
    with pytest.raises(StoreError, match="may not be written"):
        workspace.create("run/plan.json", RECORD)


def test_a_record_emptied_by_somebody_else_is_not_absent(workspace: Workspace, root: Path) -> None:
    (root / "plan.json").touch()
    with pytest.raises(StoreUnreadable, match="empty"):
        workspace.read("plan.json")


def test_an_unmounted_workspace_does_not_look_like_a_first_run(
    workspace: Workspace, root: Path, tmp_path: Path
) -> None:
    workspace.create("plan.json", RECORD)
    root.rename(tmp_path / "elsewhere")
    root.mkdir()
    for look in (
        lambda: workspace.read("plan.json"),
        lambda: workspace.names(),
        lambda: workspace.create("plan.json", RECORD),
        lambda: workspace.get("file.jsonl", tmp_path / "copy"),
    ):
        with pytest.raises(StoreUnreadable, match="no longer the folder"):
            look()
    assert list(root.iterdir()) == []
    root.rmdir()
    with pytest.raises(StoreUnreadable, match="no longer the folder"):
        workspace.read("plan.json")


def test_a_file_system_without_hard_links_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: object, target: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreUnsafe, match=r"no hard links.*gs://"):
        Workspace.open(str(root))


def test_a_link_that_was_made_although_it_was_reported_as_failed_is_ours(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = os.link

    def link(source: Path, target: Path) -> None:
        made(source, target)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", link)
    assert workspace.create("plan.json", RECORD)
    assert workspace.read("plan.json") == RECORD


def test_a_link_that_failed_may_be_tried_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: object, target: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)
        with pytest.raises(StoreUnavailable):
            workspace.create("plan.json", RECORD)
    assert workspace.create("plan.json", RECORD)


def test_no_temporary_file_remains(workspace: Workspace, root: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    workspace.create("plan.json", RECORD)
    workspace.create("plan.json", b'{"nonce":2}')
    workspace.put("file.jsonl", tmp_path / "source")
    assert {path.name for path in root.iterdir()} == {"file.jsonl", "plan.json"}


def test_looking_at_a_workspace_that_is_not_there_does_not_make_it(root: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used"):
        Workspace.open(str(root), probe=False)
    assert not root.exists()


def test_only_its_user_can_read_a_workspace_whatever_the_umask(root: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"a prompt")
    former = os.umask(0)
    try:
        workspace = Workspace.open(str(root / "deep"))
        workspace.create("run/plan.json", RECORD)
        workspace.put("run/file.jsonl", tmp_path / "source")
        workspace.write("run/blocks.jsonl", [b"an answer"], tmp_path / "aside")
    finally:
        os.umask(former)
    for path in (root, *root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
