"""File systems by URI: with the credentials of an Airflow connection, or with those of the worker's surroundings."""

from typing import Any

from airflow.sdk.io import attach, has_fs

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.access import find_connection
from airflow_batch_llm.store.remote import KINDS, default_filesystem


def open_path(uri: str, conn_id: str | None = None) -> tuple[Any, str]:
    """The file system and the path in it. The URI may name the connection: s3://conn_id@bucket/folder."""
    named, plain = split_connection(uri)
    conn_id = conn_id or named
    protocol = plain.partition("://")[0] if "://" in plain else "file"
    if has_fs(protocol):
        if conn_id is not None:  # Amazon's hook goes on without credentials if there is no such connection
            find_connection(conn_id, "source_conn_id" if conn_id != named else f"the URI {uri}")
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
    """The connection that a URI names, and the URI without it."""
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
