"""The page on a request's life names files that exist."""

import re
from pathlib import Path

import cotenant

SOURCE = Path(cotenant.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "request-life.md"


def test_every_file_that_the_page_names_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 10
    assert [path for path in named if not (SOURCE / path).is_file()] == []
