"""Databases that the warehouse tests run on, started here and stopped with the session."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.emulators import postgres


@pytest.fixture(scope="session")
def postgres_uri() -> Iterator[str]:
    """Start a PostgreSQL server of this session's own, on a socket.

    Its folder is not below pytest's: another session that begins closes that one to the server's user.
    """
    with TemporaryDirectory(prefix="batch-llm-postgres-") as folder, postgres.running(Path(folder)) as uri:
        yield uri
