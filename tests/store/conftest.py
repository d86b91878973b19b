"""One server of each kind for all tests; each test has a folder of its own in it."""

import shutil
import uuid
from collections.abc import Iterator

import pytest

from tests.store.servers import azure_server, gcs_server, s3_server


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with gcs_server(tmp_path_factory.mktemp("gcs")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("adlfs", reason="the client for Azure is not installed")
    if not shutil.which("azurite-blob"):
        pytest.skip("no Azure storage here: npm install -g azurite")
    with azure_server(tmp_path_factory.mktemp("azure")) as endpoint:
        yield endpoint


@pytest.fixture
def folder() -> str:
    return f"dags-{uuid.uuid4().hex[:8]}/runs"
