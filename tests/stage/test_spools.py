"""Spools of killed workers go at the next start; those of live workers stay."""

import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from airflow_batch_llm.stage.tidying import private_spool
from tests.stage.world import Bench

WORKER = """
import os, sys
from airflow_batch_llm.stage.tidying import private_spool
os.umask(0)
with private_spool() as spool:
    (spool / "rows").write_text("a row")
    print(spool, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def start_worker() -> tuple[subprocess.Popen[str], Path]:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout
    return worker, Path(worker.stdout.readline().strip())


def test_the_next_start_removes_a_killed_workers_spool_and_no_living_ones(parent: Path) -> None:
    (killed, left), (living, kept) = start_worker(), start_worker()
    with killed, living:
        killed.kill()
        killed.wait()
        assert left.exists()
        with private_spool() as own:
            assert {path.name for path in parent.iterdir()} == {kept.name, own.name}
            assert stat.S_IMODE((kept / "rows").stat().st_mode) == 0o666, "the umask hides nothing"
            assert stat.S_IMODE(kept.stat().st_mode) == 0o700, "its folder does: nobody else gets to the file"
        living.communicate("")
    assert not kept.exists()


def test_a_spool_without_a_lock_is_removed_once_it_is_old(parent: Path) -> None:
    young, old = parent / "batch-llm-spool-young", parent / "batch-llm-spool-old"
    for folder in (young, old):
        folder.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    (parent / "batch-llm-spool-link").symlink_to(parent)
    with private_spool():
        assert young.exists()
        assert not old.exists()
        assert parent.exists()


def test_what_a_killed_worker_staged_long_ago_goes_at_the_next_run_on_the_database(openai: Bench) -> None:
    openai.world.make_tickets(5)
    staging = Path(f"{openai.world.database}.staging")
    files = [
        staging / run / "0001-000001.answers.parquet" for run in ("0123456789abcdef", "fedcba9876543210")
    ]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"rows")
    now = openai.world.clock()
    for file, age in zip(files, (31 * 86_400, 0), strict=True):
        os.utime(file, (now - age, now - age))

    openai.complete()

    assert [file.exists() for file in files] == [False, True]
