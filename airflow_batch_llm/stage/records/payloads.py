"""Bring the files of a shard to this machine, and refuse a file that is not the planned one."""

import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path

from airflow_batch_llm.errors import StoreError
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedShard


def fetch_requests(folder: RunFolder, plan: Plan, shard: PlannedShard, path: Path) -> None:
    """Bring the request lines of a shard here."""
    _fetch(path, folder, (plan.nonce, shard.number, shard.requests_sha256), folder.get_requests)


def fetch_keys(folder: RunFolder, plan: Plan, shard: PlannedShard, path: Path) -> None:
    """Bring the rows of a shard here."""
    _fetch(path, folder, (plan.nonce, shard.number, shard.keys_sha256), folder.get_keys)


def fetch_unsendable(folder: RunFolder, plan: Plan, path: Path) -> None:
    """Bring the rows here that could not be sent: the keys of shard 0."""
    _fetch(path, folder, (plan.nonce, 0, plan.unsendable_sha256), folder.get_keys)


def _fetch(
    path: Path, folder: RunFolder, file: tuple[str, int, str], get: Callable[[str, int, Path], bool]
) -> None:
    nonce, number, sha256 = file
    arriving = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    if not get(nonce, number, arriving):
        raise StoreError(
            f"{path.name} is gone from the run folder. Clear the task to plan again. Nothing was sent twice."
        )
    with arriving.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if actual != sha256 and actual not in folder.erased_hashes(nonce, number):
        arriving.unlink()
        raise StoreError(
            f"{path.name} in the run folder is not the file that was planned. Restore it, or clear the task."
        )
    arriving.replace(path)
