"""Databases that the warehouse tests run on, started here and stopped with the session."""

from collections.abc import Iterator

import pytest

from tests.emulators import postgres


@pytest.fixture(scope="session")
def postgres_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of this session's own, on a socket."""
    with postgres.running(tmp_path_factory.mktemp("postgres")) as uri:
        yield uri
