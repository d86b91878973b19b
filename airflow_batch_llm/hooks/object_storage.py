"""File systems by URI: with the credentials of an Airflow connection, or with those of the worker's surroundings."""

from typing import Any

from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import has_fs

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.store.remote import KINDS, default_filesystem


def open_path(uri: str, conn_id: str | None = None) -> tuple[Any, str]:
    """The file system and the path in it. The URI may name a connection too: s3://conn_id@bucket/folder."""
    path = ObjectStoragePath(uri, conn_id=conn_id)
    protocol = path.protocol or "file"
    if has_fs(protocol):
        return path.fs, path.path
    if path.conn_id is None and protocol in KINDS:
        return default_filesystem(protocol), path.path
    wanted = _PROVIDERS.get(protocol, "the one of that storage")
    raise InputError(
        f"Airflow opens {protocol}:// and its connections by a provider that is not installed: {wanted}."
    )


_PROVIDERS = {
    "abfs": "apache-airflow-providers-microsoft-azure",
    "abfss": "apache-airflow-providers-microsoft-azure",
    "gcs": "apache-airflow-providers-google",
    "gs": "apache-airflow-providers-google",
    "s3": "apache-airflow-providers-amazon[s3fs]",
    "s3a": "apache-airflow-providers-amazon[s3fs]",
}
