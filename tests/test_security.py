"""SECURITY.md names tests that exist, and the source holds to what it promises everywhere."""

import ast
import re
from pathlib import Path

import pytest

import cotenant

ROOT = Path(__file__).parents[1]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text("utf-8"))))
MODULES = {"pickle", "marshal", "shelve", "tarfile", "zipfile", "dill"}
PIPES = {"advice_process.py: pickle"}
"""Objects that the daemon hands to a child of its own, over a pipe that nobody else has."""
CALLS = {"eval", "exec", "system", "popen", "unsafe_load", "full_load"}


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_every_test_that_the_page_names_exists(file: str, test: str) -> None:
    assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE)


def test_nothing_in_the_source_runs_text_or_loads_objects() -> None:
    found = []
    for path in Path(cotenant.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names} & MODULES
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]} & MODULES
            elif isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                names = {name} & CALLS | {key.arg for key in node.keywords if key.arg == "shell"}
            else:
                continue
            found += [f"{path.name}: {name}" for name in names if f"{path.name}: {name}" not in PIPES]
    assert not found
