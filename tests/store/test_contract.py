"""The contract of a workspace, on each storage."""

from functools import partial

import pytest

from airflow_batch_llm.store import Workspace
from airflow_batch_llm.testing.store import Opener, StoreContract
from tests.store.servers import open_azure, open_gcs, open_s3


class TestLocalDisk(StoreContract):
    @pytest.fixture
    def opener(self, tmp_path_factory: pytest.TempPathFactory) -> Opener:
        return partial(Workspace.open, tmp_path_factory.mktemp("workspace").as_uri())


class TestGoogleCloudStorage(StoreContract):
    records = 100

    @pytest.fixture
    def opener(self, gcs: str, folder: str) -> Opener:
        return partial(open_gcs, gcs, folder)


class TestS3(StoreContract):
    records = 100

    @pytest.fixture
    def opener(self, s3: str, folder: str) -> Opener:
        return partial(open_s3, s3, folder)


class TestAzureStorage(StoreContract):
    records = 100

    @pytest.fixture
    def opener(self, azure: str, folder: str) -> Opener:
        return partial(open_azure, azure, folder)
