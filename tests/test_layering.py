"""Imports point down only, and the pure rooms stay pure (docs/design.md, "The house")."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cotenant

_SOURCE = Path(cotenant.__file__).parent
_PURE = {"domain", "analysis", "planning", "scheduling"}
_SHELL_BASE = {"domain", "clock", "interfaces", "http", "programs", "analysis", "planning"}
_ALLOWED = {
    "domain": {"domain"},
    "clock": set(),
    "concurrency": {"clock", "concurrency"},
    "asgi": set(),
    "state_dir": set(),
    "programs": {"programs"},
    "atomic_files": set(),
    "interfaces": {"domain", "clock"},
    "analysis": {"domain", "analysis"},
    "planning": {"domain", "analysis", "planning"},
    "scheduling": {"domain", "analysis", "planning", "scheduling"},
    "simulation": {*_SHELL_BASE, "scheduling", "simulation"},
    "gguf_writer": {"domain", "analysis"},
    "demo_model": {"domain", "analysis", "gguf_writer"},
    "model_files": {"domain", "analysis"},
    "model_parts": set(),
    "http": {"domain", "http"},
    "benchmark": {*_SHELL_BASE, "benchmark"},
    "config": {*_SHELL_BASE, "scheduling", "services", "model_files", "model_parts", "config"},
    "hardware": {*_SHELL_BASE, "concurrency", "hardware"},
    "engines": {*_SHELL_BASE, "engines"},
    "nodes": {*_SHELL_BASE, "concurrency", "state_dir", "nodes"},
    "agent": {
        *_SHELL_BASE,
        "concurrency",
        "atomic_files",
        "hardware",
        "engines",
        "hub",
        "nodes",
        "model_parts",
        "sharing",
        "state_dir",
        "agent",
    },
    "sharing": {*_SHELL_BASE, "concurrency", "hardware", "engines", "sharing"},
    "ray": {"domain", "concurrency", "nodes", "ray"},
    "gateway": {*_SHELL_BASE, "asgi", "concurrency", "services", "gateway"},
    "store": {*_SHELL_BASE, "services", "atomic_files", "store"},
    "hub": {*_SHELL_BASE, "hub"},
    "services": {*_SHELL_BASE, "concurrency", "atomic_files", "services"},
    "console": {*_SHELL_BASE, "asgi", "services", "console"},
    "daemon": {
        *_SHELL_BASE,
        "concurrency",
        "config",
        "scheduling",
        "simulation",
        "hardware",
        "engines",
        "gateway",
        "console",
        "services",
        "store",
        "hub",
        "model_files",
        "model_parts",
        "nodes",
        "sharing",
        "state_dir",
        "daemon",
    },
    "doctor": {*_SHELL_BASE, "config", "hardware", "engines", "services", "doctor"},
    "__main__": {"cli"},
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
        "agent",
        "nodes",
        "hub",
        "model_files",
        "demo_model",
        "atomic_files",
        "state_dir",
        "ray",
        "benchmark",
        "cli",
    },
}
# What each sub-room may import of its siblings. A room's own files stand above its sub-rooms, or below, as
# `services/model.py` does; no files at all may import each other in a circle.
_SIBLINGS: dict[str, dict[str, set[str]]] = {
    "cli": {
        "keys": set(),
        "nodes": set(),
        "services": set(),
        "simulate": set(),
        "systemd": set(),
        "top": set(),
    },
    "daemon": {
        "core": set(),
        "monitors": {"core"},
        "alerting": set(),
        "nodes": {"core", "monitors", "alerting"},
        "advising": {"core"},
    },
    "engines": {
        "diagnosis": set(),
        "process": set(),
        "launch": {"diagnosis", "process"},
        "base": {"diagnosis", "process", "launch"},
        # Each kind of engine, which so knows no other.
        "*": {"diagnosis", "process", "launch", "base"},
    },
    "gateway": {
        "http": set(),
        "telemetry": {"http"},
        "access": {"http"},
        "inference": {"http", "telemetry"},
        "ollama": {"http", "inference"},
        "plans": {"http"},
        "services": {"http"},
        "operator": {"http", "telemetry", "plans", "services"},
        "openapi": {"http"},
        "websocket": {"http", "inference"},
    },
    "hardware": {"gpus": set(), "model_cache": {"gpus"}, "mps": set()},
    "config": {"values": set()},
    "scheduling": {"queries": set(), "copies": set(), "tracking": set()},
    "services": {"assign": set(), "compose": set()},
    "store": {"services": set(), "migrations": set()},
}
# The files by which other rooms may reach into a sub-room; all else of it is its own.
_ENTRANCES: dict[str, set[str]] = {
    "config.values": {"nodes"},
    "daemon.core": {"fleet", "inputs", "settings"},
    "daemon.monitors": {"measured_footprints", "ollama_models", "recorder"},
    "engines.launch": {"launchers", "orphans", "plan"},
    "engines.llama_cpp": {"builds", "install", "rehearsal"},
    "engines.ollama": {"client"},
    "engines.vllm": {"release"},
    "engines.process": {"guard", "log_folder", "marks", "process", "slot_store"},
    "gateway.http": {"limits"},
    "gateway.inference": {"request_log"},
    "hardware.gpus": {"card_health", "described", "host", "inventory", "xid_events"},
    "hardware.model_cache": {"load_progress", "page_cache", "warm"},
    "hardware.mps": {
        "control",
        "daemon",
        "directories",
        "discovery",
        "manual",
        "program",
        "status",
    },
    "scheduling.copies": {"serving"},
    "scheduling.queries": {"fragmentation", "warm_ranking"},
    "scheduling.tracking": {"changes", "deadlines"},
    "services.compose": {"command", "compose_files", "container_events", "importing", "orchestrator"},
}
_MAX_FILES = 25
_MAX_LINES = 400
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


@cache
def modules() -> list[Path]:
    return sorted(path for path in _SOURCE.rglob("*.py") if path != _SOURCE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(_SOURCE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    parts = path.relative_to(_SOURCE).with_suffix("").parts
    return ".".join(("cotenant", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def folders() -> list[Path]:
    return sorted({path.parent for path in modules()} - {_SOURCE})


def sub_room(name: str) -> tuple[str, str] | None:
    """Return the room and the sub-room that a module's name lies in; None for a room's own file."""
    parts = name.split(".")
    return (parts[1], parts[2]) if len(parts) > 2 and (_SOURCE / parts[1] / parts[2]).is_dir() else None


@cache
def imports(path: Path) -> tuple[str, ...]:
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def all_imports() -> Iterator[tuple[Path, str]]:
    for path in modules():
        for name in imports(path):
            yield path, name


def test_modules_import_only_from_rooms_below() -> None:
    wrong = []
    for path, name in all_imports():
        parts = name.split(".")
        if parts[0] != "cotenant" or len(parts) < 2 or parts[1] == "__version__":
            continue
        if parts[1] not in _ALLOWED[room(path)]:
            wrong.append(f"{path.relative_to(_SOURCE)} imports {name}")
    assert not wrong


def test_pure_modules_import_nothing_that_reaches_the_machine() -> None:
    wrong = []
    for path, name in all_imports():
        top = name.split(".")[0]
        known = top == "cotenant" or top in sys.stdlib_module_names
        if room(path) in _PURE and (top in _IMPURE or not known):
            wrong.append(f"{path.relative_to(_SOURCE)} imports {name}")
    assert not wrong


def test_only_its_own_folder_imports_ray_and_nobody_imports_that_but_what_it_is_started_with() -> None:
    wrong = []
    for path, name in all_imports():
        into = name.split(".")[0] == "ray" or name.startswith("cotenant.ray")
        if into and room(path) != "ray" and not name.startswith("cotenant.ray.environment"):
            wrong.append(f"{path.relative_to(_SOURCE)} imports {name}")
    environment = imports(_SOURCE / "ray" / "environment.py")
    assert not wrong + [name for name in environment if name.startswith(("ray", "cotenant"))]


def test_sub_rooms_import_only_from_siblings_below() -> None:
    wrong = []
    for path, name in all_imports():
        here, there = sub_room(name_of(path)), sub_room(name) if name.startswith("cotenant.") else None
        if here is None or there is None or there[0] != here[0] or there[1] == here[1]:
            continue
        allowed = _SIBLINGS[here[0]]
        if there[1] not in allowed[here[1] if here[1] in allowed else "*"]:
            wrong.append(f"{path.relative_to(_SOURCE)} imports {name}")
    assert not wrong


def test_sub_rooms_are_entered_by_their_entrances() -> None:
    wrong = []
    for path, name in all_imports():
        there = sub_room(name) if name.startswith("cotenant.") else None
        parts = name.split(".")
        if there is None or there[0] == room(path) or len(parts) < 4:
            continue
        if not _SOURCE.joinpath(*parts[1:4]).with_suffix(".py").exists():
            continue
        if parts[3] not in _ENTRANCES.get(".".join(there), set()):
            wrong.append(f"{path.relative_to(_SOURCE)} imports {name}")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = {name_of(path): path for path in modules()}
    below = {name: {other for other in imports(path) if other in known} for name, path in known.items()}
    # What imports nothing that is left, or is imported by nothing that is left, is in no circle.
    while True:
        imported = {other for name in below for other in below[name]}
        done = {name for name in below if name not in imported or not below[name] & below.keys()}
        if not done:
            break
        below = {name: others for name, others in below.items() if name not in done}
    assert not below, f"these files import each other in a circle: {sorted(below)}"


def test_folders_are_small_and_say_what_they_are_for() -> None:
    for folder in folders():
        assert len(list(folder.glob("*.py"))) <= _MAX_FILES, folder
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert text is not None, f"{folder}/__init__.py says nothing"


def test_files_are_short() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert not [str(path.relative_to(_SOURCE)) for path, count in lines.items() if count > _MAX_LINES]
