"""Where settings come from: a file, below the environment, below flags, all over Ollama's variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from cotenant.config.environment import from_environment, from_flags, from_ollama
from cotenant.config.fields import SECTIONS, scalar_of
from cotenant.config.issues import KeyPath
from cotenant.config.trusted_file import refuse_if_others_may_write
from cotenant.config.variables import Issue, expanded
from cotenant.config.yaml_document import Document, read_document
from cotenant.domain.errors import BadSetting, UsageError
from cotenant.domain.requests import overlaid


@dataclass(frozen=True, slots=True)
class Layers:
    """Settings as given, nested and unchecked: what wins, where it was given, and what cannot be read."""

    values: Mapping[str, Any]
    sources: Mapping[KeyPath, str]
    issues: list[Issue]


def find_configuration(given: Path | None, environment: Mapping[str, str]) -> Path | None:
    """Return the file to read: `given`, $COTENANT_CONFIG, ./cotenant.yaml, or the one in ~/.config.

    None if there is none. Raises BadSetting if `given` or $COTENANT_CONFIG does not exist, or if others may
    write a file that neither of them names.
    """
    asked = given or environment.get("COTENANT_CONFIG")
    if asked:
        path = Path(os.path.expanduser(asked))
        if not os.path.isfile(path):
            raise BadSetting(
                f"{path} does not exist or is not a file", hint="Check --config or COTENANT_CONFIG."
            )
        return path
    home = environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    candidates = (Path("cotenant.yaml"), Path(home) / "cotenant" / "cotenant.yaml")
    found = next((path for path in candidates if os.path.isfile(path)), None)
    if found is not None:
        refuse_if_others_may_write(found)
    return found


def layered(document: Document | None, environment: Mapping[str, str], flags: Mapping[str, object]) -> Layers:
    """Return the settings of all sources; `sources` are those that no file gives."""
    by_flag, flag_sources = from_flags(flags)
    by_variable, variable_sources = from_environment(environment)
    issues: list[Issue] = []
    by_file: Mapping[str, Any] = {}
    if document is not None:
        # Flags are no text of a file: the shell has expanded them.
        given = expanded(document.settings, environment, issues) if document.name else document.settings
        # An empty section would hide the values of other sources.
        by_file = {key: each for key, each in given.items() if each is not None}
    by_ollama, ollama_sources = from_ollama(environment)
    ollama_sources = {key: each for key, each in ollama_sources.items() if not _is_set(by_file, key)}
    values = reduce(overlaid, [by_ollama, by_file, by_variable, by_flag])
    return Layers(values, {**ollama_sources, **variable_sources, **flag_sources}, issues)


def server_address(environment: Mapping[str, str]) -> tuple[str | None, int | None]:
    """Return the host and the port that `serve` would listen at if it were started here, None if not given.

    Nothing else is read: commands that only ask a daemon need no schema. What is invalid counts as not given.
    """
    try:
        path = find_configuration(None, environment)
        document = None if path is None else read_document(path)
    except BadSetting:
        # A daemon may run with what the file said before.
        return None, None
    server = layered(document, environment, {}).values.get("server")
    found: dict[str, Any] = {}
    for each in SECTIONS["server"]:
        if each.key in ("host", "port") and isinstance(server, Mapping) and server.get(each.key) is not None:
            try:
                found[each.key] = scalar_of(each).read(server[each.key])
            except UsageError:
                continue
    return found.get("host"), found.get("port")


def _is_set(settings: Any, key: KeyPath) -> bool:
    for part in key:
        if not isinstance(settings, Mapping) or part not in settings:
            return False
        settings = settings[part]
    return True
