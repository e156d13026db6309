"""Imports point down only, and the pure rooms stay pure (docs/design.md, "The house")."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cotenant

_SOURCE = Path(cotenant.__file__).parent
_PURE = {"domain", "analysis", "planning", "scheduling"}
_SHELL_BASE = {"domain", "clock", "interfaces", "tls", "analysis", "planning"}
_ALLOWED = {
    "domain": {"domain"},
    "clock": set(),
    "concurrency": {"clock"},
    "atomic_files": set(),
    "tls": set(),
    "interfaces": {"domain", "clock"},
    "analysis": {"domain", "analysis"},
    "planning": {"domain", "analysis", "planning"},
    "scheduling": {"domain", "analysis", "planning", "scheduling"},
    "simulation": {*_SHELL_BASE, "scheduling", "simulation"},
    "gguf_writer": {"domain", "analysis"},
    "demo_model": {"domain", "analysis", "gguf_writer"},
    "model_files": {"domain", "analysis"},
    "http_client": {"domain", "tls"},
    "benchmark": {*_SHELL_BASE, "http_client", "benchmark"},
    "config": {*_SHELL_BASE, "services", "model_files", "http_client", "config"},
    "hardware": {*_SHELL_BASE, "hardware"},
    "engines": {*_SHELL_BASE, "engines"},
    "gateway": {*_SHELL_BASE, "services", "gateway"},
    "store": {*_SHELL_BASE, "services", "atomic_files", "store"},
    "hub": {*_SHELL_BASE, "hub"},
    "services": {*_SHELL_BASE, "concurrency", "atomic_files", "services"},
    "console": {*_SHELL_BASE, "services", "console"},
    "daemon": {
        *_SHELL_BASE,
        "concurrency",
        "config",
        "scheduling",
        "hardware",
        "engines",
        "gateway",
        "console",
        "services",
        "store",
        "hub",
        "model_files",
        "http_client",
        "daemon",
    },
    "doctor": {*_SHELL_BASE, "config", "hardware", "engines", "services", "doctor"},
    "cli": {
        *_SHELL_BASE,
        "scheduling",
        "simulation",
        "config",
        "store",
        "hardware",
        "engines",
        "services",
        "doctor",
        "daemon",
        "hub",
        "model_files",
        "demo_model",
        "atomic_files",
        "http_client",
        "benchmark",
        "cli",
    },
}
_IMPURE = {
    "asyncio",
    "time",
    "os",
    "random",
    "logging",
    "socket",
    "subprocess",
    "threading",
    "pathlib",
    "sys",
}


def modules() -> list[Path]:
    return sorted(path for path in _SOURCE.rglob("*.py") if path != _SOURCE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(_SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(_SOURCE)))
def test_a_module_imports_only_from_rooms_below(path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "cotenant" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in _ALLOWED[room(path)], f"{room(path)} may not import {name}"


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if room(path) in _PURE],
    ids=lambda path: str(path.relative_to(_SOURCE)),
)
def test_a_pure_module_imports_nothing_that_reaches_the_machine(path: Path) -> None:
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in _IMPURE, f"{path.name} imports {name}"
        assert top == "cotenant" or top in sys.stdlib_module_names, f"{path.name} imports {name}"
