from pathlib import Path

import pytest

from cotenant.domain.errors import BadSetting
from cotenant.store.location import Location, locate


@pytest.mark.parametrize(
    ("given", "path"),
    [
        (Path("/a/cotenant.db"), "/a/cotenant.db"),
        ("state/cotenant.db", "state/cotenant.db"),
        ("sqlite:////a/cotenant.db", "/a/cotenant.db"),
        ("sqlite:///cotenant.db", "cotenant.db"),
    ],
)
def test_files_are_known_by_path_and_url(given: Path | str, path: str) -> None:
    assert locate(given) == Location(path=Path(path))


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "PostgreSQL"])
def test_every_spelling_of_postgresql_means_the_one_driver(scheme: str) -> None:
    assert locate(f"{scheme}://me@host/db").url == "postgresql+psycopg://me@host/db"


@pytest.mark.parametrize("given", ["mysql://host/db", "postgresql+asyncpg://host/db", "sqlite://", "", " "])
def test_other_databases_are_refused(given: str) -> None:
    with pytest.raises(BadSetting) as caught:
        locate(given)
    assert "postgresql+psycopg://" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/db",
        "postgresql://me:hunter2@host:5432/db?sslmode=require",
        "postgresql://me:hun@hunter2@host/db",
        "postgresql://me:hun/hunter2@host/db",
        "postgresql://:hunter2@host/db",
        "postgresql://host/db?user=me&password=hunter2&sslmode=require",
        "mysql://me:hunter2@host/db",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    try:
        shown = f"{locate(url)} {locate(url)!r}"
    except BadSetting as error:
        shown = error.message
    assert "hunter2" not in shown
    assert "host" in shown
    assert "***" in shown
