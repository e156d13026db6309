"""The places in which everything about the store must hold."""

from pathlib import Path

import pytest

from tests.store.harness import Place
from tests.support import postgres


@pytest.fixture
def server() -> postgres.Cluster:
    found = postgres.cluster()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def url(server: postgres.Cluster) -> str:
    """An empty place on a real PostgreSQL server."""
    return server.new_schema()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a database may be: nothing is there yet."""
    if request.param == "sqlite":
        return tmp_path / "state" / "cotenant.db"
    made: str = request.getfixturevalue("url")
    return made
