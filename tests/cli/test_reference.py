"""docs/cli.md is what the parsers say."""

import os
from pathlib import Path

import pytest

from cotenant.cli.main import build_parser
from cotenant.cli.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("COTENANT_"):
            monkeypatch.delenv(name)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: python -m cotenant.cli.reference > docs/cli.md"
    )


def test_it_names_every_command_and_flag_that_the_help_names() -> None:
    page = reference()
    for line in build_parser().format_help().splitlines():
        if line.startswith("    ") and line[4] != " ":
            assert f"## cotenant {line.split()[0]}\n" in page
    for text in (
        "`--device-order free_desc|total_desc|index`: which GPU comes first (default: free_desc)",
        "`--kv-unified`, `--no-kv-unified`: one KV stream",
        "### cotenant services set",
        "`[SERVICE=GPU[:BUDGET] ...]`",
        "`-n N`, `--lines N`: last lines (default: 100)",
    ):
        assert text in page


def test_old_names_and_hidden_flags_are_left_out() -> None:
    assert "cotenant service " not in reference()
    assert "SUPPRESS" not in reference()
