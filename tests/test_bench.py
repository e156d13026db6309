"""bench/ is run by hand: what it imports of the package must not go unnoticed when it moves."""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "bench").rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_imports_of_the_package_exists(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "cotenant":
            module = import_module(str(node.module))
            for name in node.names:
                found = hasattr(module, name.name) or find_spec(f"{node.module}.{name.name}")
                assert found, f"{script.name}: {node.module} has no {name.name}"
