"""Fixtures of every test. Airflow's home is set before anything can import it."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-home-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "True"
os.environ["AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"] = "0"  # a deferred task need not be left alone
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # gcsfs reads it when it is imported

from tests.emulators import postgres, servers, setup
from tests.store.servers import close_filesystems

atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)

gc.disable()  # what is imported stays: until all is collected, there is nothing to find


def pytest_collection_finish() -> None:
    """Look for garbage from here on, but never again among what the imports have left."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Thaw what was frozen: libraries complain about objects that are left when the process ends."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _connections_end_with_the_test() -> Iterator[None]:
    yield
    close_filesystems()


@pytest.fixture(scope="session")
def emulators() -> Iterator[servers.Emulators]:
    """BigQuery and Cloud Storage on loopback; skipped where they cannot be built, failed where they must be."""
    if not setup.is_built():
        reason = "no emulators here: run `make emulators` on a machine with Python 3.13"
        pytest.fail(reason) if setup.is_required() else pytest.skip(reason)
    with servers.running() as pair:
        yield pair


@pytest.fixture(scope="session")
def postgres_uri() -> Iterator[str]:
    """Start a PostgreSQL server of this session's own, on a socket.

    Its folder is not below pytest's: another session that begins closes that one to the server's user.
    """
    with (
        tempfile.TemporaryDirectory(prefix="batch-llm-postgres-") as folder,
        postgres.running(Path(folder)) as uri,
    ):
        yield uri
