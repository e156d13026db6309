"""Flags and environment variables as settings: `--n-ctx` and COTENANT_N_CTX both set `defaults.ctx`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cotenant.config.fields import SECTIONS
from cotenant.config.issues import KeyPath

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
_PATHS: Final = frozenset(
    ["models_dir", "database", *(each.flag for each in SECTIONS["server"] if each.type is Path)]
)


def from_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Return the settings in the environment, nested, and the variable of each.

    An empty variable counts as not set. Variables that are not settings are ignored.
    """
    names = {**{name: name for name in SETTINGS}, **_OTHER_NAMES}
    given: dict[str, tuple[object, str]] = {}
    for spelling, name in names.items():
        variable = PREFIX + spelling.upper()
        if environment.get(variable) and name not in given:
            given[name] = (environment[variable], variable)
    return _nested(given)


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
