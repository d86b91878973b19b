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
    """Let several writers create one record, and one more after them. Leaves no trace."""
    path = f"probe-{uuid.uuid4().hex}.json"
    contents = [f'{{"writer":{number}}}'.encode() for number in range(_WRITERS)]
    if storage.read(path) is not None:
        raise _unsafe(uri, "a record that was never written could be read")
    try:
        with ThreadPoolExecutor(_WRITERS) as pool:
            won = list(pool.map(lambda content: storage.create(path, content), contents))
        held = storage.read(path)
        if held is None:
            raise _unsafe(uri, "a record was not there right after it had been written")
        if won.count(True) != 1 or held != contents[won.index(True)]:
            raise _unsafe(
                uri, f"{won.count(True)} of {_WRITERS} writers were told that they had created one record"
            )
        if storage.create(path, b'{"writer":"late"}') or storage.read(path) != held:
            raise _unsafe(uri, "a record that existed was created again")
    finally:
        storage.delete(path)
    if storage.read(path) is not None:
        raise _unsafe(uri, "a record was still there right after it had been deleted")


def _unsafe(uri: str, finding: str) -> StoreUnsafe:
    return StoreUnsafe(
        f"The workspace {uri} cannot guard against paying twice: {finding}. Use a storage with conditional writes "
        "(Google Cloud Storage, Amazon S3, Azure Blob Storage, a recent MinIO), a local disk or an NFS mount."
    )
