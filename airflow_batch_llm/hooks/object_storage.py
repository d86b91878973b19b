"""Open files and workspaces by URI, with the credentials of an Airflow connection or those of the worker."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf
from airflow.sdk.io import attach, has_fs

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.llm import find_connection
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.store.remote import KINDS, default_filesystem

if TYPE_CHECKING:
    import pyarrow as pa  # Dags import this module, and only tasks read files


def open_path(uri: str, conn_id: str | None = None, argument: str = "source_conn_id") -> tuple[Any, str]:
    """Return the file system and the path in it. The URI may name the connection: s3://conn_id@bucket/folder."""
    named, plain = split_connection(uri)
    conn_id = conn_id or named
    protocol = plain.partition("://")[0] if "://" in plain else "file"
    if has_fs(protocol):
        if conn_id is not None:  # Amazon's hook goes on without credentials if there is no such connection
            find_connection(conn_id, argument if conn_id != named else f"the URI {uri}")
        fs = attach(protocol, conn_id).fs
    elif conn_id is None and protocol in KINDS:
        fs = default_filesystem(protocol)
    else:
        wanted = _PROVIDERS.get(protocol, "the one of that storage")
        raise InputError(
            f"Airflow opens {protocol}:// and its connections by a provider that is not installed: {wanted}."
        )
    return fs, fs._strip_protocol(plain)


def split_connection(uri: str) -> tuple[str | None, str]:
    """Return the connection that a URI names, and the URI without it."""
    protocol, separator, place = uri.partition("://")
    if not separator:
        return None, uri
    bucket, slash, path = place.partition("/")
    conn_id, _, bucket = bucket.rpartition("@")
    return conn_id or None, f"{protocol}://{bucket}{slash}{path}"


_PROVIDERS = {
    "abfs": "apache-airflow-providers-microsoft-azure",
    "abfss": "apache-airflow-providers-microsoft-azure",
    "gcs": "apache-airflow-providers-google",
    "gs": "apache-airflow-providers-google",
    "s3": "apache-airflow-providers-amazon[s3fs]",
    "s3a": "apache-airflow-providers-amazon[s3fs]",
}


_HOOK_PARAMS = ("format", "column_types", "delimiter")


class ObjectFiles:
    """The rows of files that are named by URIs or patterns."""

    def __init__(
        self, uris: tuple[str, ...], conn_id: str | None = None, hook_params: Mapping[str, Any] | None = None
    ) -> None:
        from airflow_batch_llm.warehouses.files.source import FileFormat, FileSource

        params = dict(hook_params or {})
        if unknown := params.keys() - set(_HOOK_PARAMS):
            raise InputError(
                f"source_hook_params has {', '.join(sorted(unknown))}, which files do not know."
                f" They take: {', '.join(_HOOK_PARAMS)}."
            )
        if params.get("format") is not None:
            params["format"] = FileFormat(params["format"])
        self._files = FileSource(uris=uris, **params)
        self._conn_id = conn_id

    def read(self, source: Source) -> "pa.RecordBatchReader":
        from airflow_batch_llm.warehouses.files.source import read_files

        return read_files(self._files, self._find, source.columns)

    def files(self) -> list[str]:
        """Return the names of all files, in the order in which they are read."""
        from airflow_batch_llm.warehouses.files.source import file_names

        return file_names(self._files, self._find)

    def origin(self) -> str:
        """Text that tells these files from others: how they are named and read, and by which connection."""
        return f"{self._files} by {self._conn_id}"

    def read_some(self, names: Sequence[str], schema: "pa.Schema") -> "pa.RecordBatchReader":
        """Return the rows of some of the files, in the columns of all of them."""
        from airflow_batch_llm.warehouses.files.source import read_some_files

        return read_some_files(self._files, names, schema, self._find)

    def _find(self, uri: str) -> tuple[Any, str]:
        return open_path(uri, self._conn_id)


_SECTION = "batch_llm"


def open_workspace(uri: str | None = None, *, probe: bool = True) -> Workspace:
    """Return the workspace of this URI, or of the configuration. The URI may name a connection: s3://conn_id@bucket/folder.

    Without `probe` nothing is written or made there.
    """
    uri = uri or conf.get(_SECTION, "workspace", fallback="") or None
    distributed = not _one_disk(conf.get("core", "executor", fallback="LocalExecutor"))
    if uri is None:
        if distributed:
            raise InputError(
                "No workspace is set, and the executor spreads tasks over machines. Set [batch_llm] workspace to a folder"
                " that every worker reaches, such as gs://bucket/batch-llm. Nothing was sent."
            )
        return Workspace.open((_airflow_home() / "batch_llm").as_uri(), probe=probe)
    if _is_local(uri):
        if distributed and not conf.getboolean(_SECTION, "shared_workspace", fallback=False):
            raise InputError(
                f"The workspace {uri} is a local folder, and the executor spreads tasks over machines: a worker that does"
                " not see it would pay again. Use object storage, or, if the folder is a shared mount, say so with"
                " [batch_llm] shared_workspace = True. Nothing was sent."
            )
        return Workspace.open(uri, probe=probe)
    conn_id, plain = split_connection(uri)
    return Workspace.open(plain, filesystem_factory=lambda _: open_path(uri)[0], probe=probe, conn_id=conn_id)


def _is_local(uri: str) -> bool:
    protocol, separator, _ = uri.partition("://")
    return not separator or protocol == "file"


def _one_disk(executors: str) -> bool:
    """Return whether all configured executors run their tasks on the scheduler's machine."""
    return all(
        name.strip().rpartition(".")[2].partition(":")[0] == "LocalExecutor" for name in executors.split(",")
    )


def _airflow_home() -> Path:
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser().absolute()
