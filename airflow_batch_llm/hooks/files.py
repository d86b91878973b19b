"""Files as a source, through Airflow's object storage: the connection's credentials, and Airflow's file systems."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa  # this module is imported by a task that reads files, never by a Dag

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.object_storage import open_path
from airflow_batch_llm.warehouses.files import FileFormat, FileSource, read_files

_HOOK_PARAMS = ("format", "column_types", "delimiter")


class Files:
    """The rows of files that are named by URIs or patterns."""

    def __init__(
        self, uris: tuple[str, ...], conn_id: str | None = None, hook_params: Mapping[str, Any] | None = None
    ) -> None:
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

    def read(self, source: Source) -> pa.RecordBatchReader:  # noqa: ARG002 - the files are the source
        return read_files(self._files, self._find)

    def _find(self, uri: str) -> tuple[Any, str]:
        return open_path(uri, self._conn_id)
