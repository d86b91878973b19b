"""Which workspace a task uses, and how its storage is reached.

A folder that not every worker sees looks like a first run, and would be paid again. So there is a default only where
all tasks share a disk, and a local folder elsewhere must be declared as shared.
"""

import os
from pathlib import Path

from airflow.providers.common.compat.sdk import conf

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.object_storage import open_path, split_connection
from airflow_batch_llm.store import Workspace

_SECTION = "batch_llm"


def open_workspace(uri: str | None = None) -> Workspace:
    """The workspace of this URI, or of the configuration. The URI may name a connection: s3://conn_id@bucket/folder."""
    uri = uri or conf.get(_SECTION, "workspace", fallback="") or None
    distributed = not _one_disk(conf.get("core", "executor", fallback="LocalExecutor"))
    if uri is None:
        if distributed:
            raise InputError(
                "No workspace is set, and the executor spreads tasks over machines. Set [batch_llm] workspace to a folder"
                " that every worker reaches, such as gs://bucket/batch-llm. Nothing was sent."
            )
        return Workspace.open((_airflow_home() / "batch_llm").as_uri())
    if _is_local(uri):
        if distributed and not conf.getboolean(_SECTION, "shared_workspace", fallback=False):
            raise InputError(
                f"The workspace {uri} is a local folder, and the executor spreads tasks over machines: a worker that does"
                " not see it would pay again. Use object storage, or, if the folder is a shared mount, say so with"
                " [batch_llm] shared_workspace = True. Nothing was sent."
            )
        return Workspace.open(uri)
    return Workspace.open(split_connection(uri)[1], filesystem_factory=lambda _: open_path(uri)[0])


def _is_local(uri: str) -> bool:
    protocol, separator, _ = uri.partition("://")
    return not separator or protocol == "file"


def _one_disk(executors: str) -> bool:
    """Whether all of the configured executors run their tasks on the scheduler's machine."""
    return all(
        name.strip().rpartition(".")[2].partition(":")[0] == "LocalExecutor" for name in executors.split(",")
    )


def _airflow_home() -> Path:
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser().absolute()
