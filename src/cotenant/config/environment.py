"""Flags and environment variables as settings: `--n-ctx` and COTENANT_N_CTX both set `defaults.ctx`."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cotenant.config.configuration import Problem
from cotenant.config.fields import SECTIONS
from cotenant.config.issues import KeyPath, dotted

PREFIX: Final = "COTENANT_"
SETTINGS: Final[Mapping[str, tuple[str, ...]]] = {
    **{
        each.flag: (section, each.key)
        for section, settings in SECTIONS.items()
        for each in settings
        if each.flag and section != "models"
    },
    "warm_ram_mib": ("warm", "ram_mib"),
    "models_dir": ("models_dir",),
    "database": ("database",),
}
"""Flags, by name with underscores, and the key paths of their settings."""
_OTHER_NAMES: Final = {
    "num_parallel": "parallel",
    "max_loaded_models": "max_loaded",
    "gpu_layers": "n_gpu_layers",
}
"""Names from Ollama; Cotenant's own names take precedence."""
_OF_OLLAMA: Final = {
    "OLLAMA_KEEP_ALIVE": "keep_alive",
    "OLLAMA_NUM_PARALLEL": "parallel",
    "OLLAMA_MAX_LOADED_MODELS": "max_loaded",
    "OLLAMA_GPU_LAYERS": "n_gpu_layers",
    "OLLAMA_MODELS": "models_dir",
    "OLLAMA_HOST": "host",
}
"""Ollama's own variables, which count where nothing else is given, and the settings that they are."""
_AUTOMATIC: Final = frozenset({"OLLAMA_NUM_PARALLEL", "OLLAMA_MAX_LOADED_MODELS"})
"""Those where 0 leaves it to the program."""
_NO_SETTINGS: Final = {
    *("address", "api_key", "bin", "config", "debug", "devices", "engine", "gpus", "llama_server"),
    *("load_timeout", "log_format", "machine_id", "model", "mps_control", "name", "node", "ray_token"),
    *("state_dir", "use_fit_params"),
}
"""Further names that follow the prefix: those of commands and start scripts, and marks of our processes."""
_PATHS: Final = frozenset(
    ["models_dir", "database", *(each.flag for each in SECTIONS["server"] if each.type is Path)]
)


def from_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Return the settings in the environment, nested, and the variable of each.

    An empty variable counts as not set. Variables that are not settings are left to `notes`.
    """
    names = {**{name: name for name in SETTINGS}, **_OTHER_NAMES}
    given: dict[str, tuple[object, str]] = {}
    for spelling, name in names.items():
        variable = PREFIX + spelling.upper()
        if environment.get(variable) and name not in given:
            given[name] = (environment[variable], variable)
    return _nested(given)


def from_ollama(environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Return the settings in Ollama's own variables, nested, and the variable of each.

    OLLAMA_HOST is HOST, HOST:PORT or a URL.
    """
    given = {_OF_OLLAMA[each]: (environment[each], each) for each in _read_of_ollama(environment)}
    if "host" in given:
        address, source = given["host"]
        host, _, port = address.rpartition(":")
        with suppress(ValueError):
            parts = urlsplit(address if "://" in address else f"//{_bracketed(address)}")
            host, port = parts.hostname or "127.0.0.1", str(parts.port or 11434)
        given |= {"host": (host, source), "port": (port, source)}
    return _nested(given)


def _read_of_ollama(environment: Mapping[str, str]) -> Iterator[str]:
    for variable in _OF_OLLAMA:
        if environment.get(variable) and (environment[variable] != "0" or variable not in _AUTOMATIC):
            yield variable


def _bracketed(address: str) -> str:
    """Return an address with brackets around an IPv6 one that has none."""
    return f"[{address}]" if address.count(":") > 1 and "[" not in address else address


def notes(environment: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what to know of the variables: which of Ollama's are read, and which of ours nothing reads."""
    for variable in _read_of_ollama(environment):
        key = dotted(SETTINGS[_OF_OLLAMA[variable]])
        yield Problem(Path(variable), f"read as {key}, where nothing else sets that")
    known = {*SETTINGS, *_OTHER_NAMES, *_NO_SETTINGS}
    for variable in sorted(environment):
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and name not in known:
            near = get_close_matches(name, sorted(known), n=1, cutoff=0.5)
            what = f"did you mean {PREFIX}{near[0].upper()}?" if near else "docs/cli.md lists those that are"
            yield Problem(Path(variable), f"nothing reads it: {what}")


def from_flags(flags: Mapping[str, object]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Return the settings in the flags, nested, and the flag of each.

    `flags` are by name with underscores (`n_ctx`), as texts or parsed; None means that a flag was not given.
    Names that are not settings are ignored.
    """
    return _nested(
        {
            name: (value, f"--{name.replace('_', '-')}")
            for name, value in flags.items()
            if name in SETTINGS and value is not None
        }
    )


def _nested(given: Mapping[str, tuple[object, str]]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    settings: dict[str, Any] = {}
    sources: dict[KeyPath, str] = {}
    for name, (value, source) in given.items():
        *around, last = SETTINGS[name]
        section = settings
        for key in around:
            section = section.setdefault(key, {})
        if name == "api_key":
            value = list(value) if isinstance(value, (list, tuple)) else [value]
        elif name in _PATHS and "://" not in str(value):
            # Relative to the current directory; paths in the file are relative to its folder.
            value = os.path.abspath(os.path.expanduser(str(value)))
        section[last] = value
        sources[SETTINGS[name]] = source
    return settings, sources
