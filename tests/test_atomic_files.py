"""Files that are replaced whole."""

import os
from pathlib import Path

import pytest

from cotenant.atomic_files import write_durably


@pytest.mark.parametrize(("asked", "got"), [(None, 0o600), (0o644, 0o644), (0o600, 0o600)])
def test_permissions_are_those_asked_for_else_as_the_umask_says(
    tmp_path: Path, asked: int | None, got: int
) -> None:
    before = os.umask(0o077)
    try:
        write_durably(tmp_path / "a", b"text", asked)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == got


def test_where_it_cannot_be_replaced_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_durably(tmp_path / "a", b"text")
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
