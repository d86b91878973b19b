"""Proof, before the first record, that a workspace lets exactly one writer create a record.

Old or simple S3 servers take the condition of a conditional write and ignore it; every payment would then rest on
luck. So the property itself is tried, by several writers at once, once per process and workspace.
"""

import uuid
from concurrent.futures import ThreadPoolExecutor

from airflow_batch_llm.errors import StoreUnsafe
from airflow_batch_llm.store.base import Storage

_WRITERS = 4
_proven: set[tuple[object, ...]] = set()


def probe_once(storage: Storage, uri: str, identity: tuple[object, ...]) -> None:
    """Probe a workspace unless this process has done so."""
    if identity not in _proven:
        probe(storage, uri)
        _proven.add(identity)


def probe(storage: Storage, uri: str) -> None:
    """Try what a workspace must do, on two records of which no trace is left."""
    name = f"probe-{uuid.uuid4().hex}"
    alone, contested = f"{name}-alone.json", f"{name}-contested.json"
    try:
        _one_after_the_other(storage, uri, alone)
        _at_once(storage, uri, contested)
    finally:
        storage.delete(alone)
        storage.delete(contested)
    if storage.read(alone) is not None:
        raise _unsafe(uri, "a record was still there right after it had been deleted")


def _one_after_the_other(storage: Storage, uri: str, path: str) -> None:
    if storage.read(path) is not None:
        raise _unsafe(uri, "a record that was never written could be read")
    if not storage.create(path, b"first") or storage.read(path) != b"first":
        raise _unsafe(uri, "a record was not there right after it had been written")
    if storage.create(path, b"second") or storage.read(path) != b"first":
        raise _unsafe(uri, "a record that existed was created again")


def _at_once(storage: Storage, uri: str, path: str) -> None:
    contents = [f"writer {number}".encode() for number in range(_WRITERS)]
    with ThreadPoolExecutor(_WRITERS) as pool:
        won = list(pool.map(lambda content: storage.create(path, content), contents))
    if won.count(True) != 1 or storage.read(path) != contents[won.index(True)]:
        raise _unsafe(
            uri,
            f"{won.count(True)} of {_WRITERS} writers got the answer that they had created the same record",
        )


def _unsafe(uri: str, finding: str) -> StoreUnsafe:
    return StoreUnsafe(
        f"The workspace {uri} cannot guard against paying twice: {finding}. Use a storage with conditional writes "
        "(Google Cloud Storage, Amazon S3, Azure Blob Storage, a recent MinIO), a local disk or an NFS mount."
    )
