"""References to environment variables in the file's values: `${NAME}` and `${NAME:-default}`."""

import re
from collections.abc import Mapping
from typing import Any, Final

from cotenant.config.issues import KeyPath

_REFERENCE: Final = re.compile(r"\$(\$?)\{(?:([A-Za-z_][A-Za-z0-9_]*)(?:(:?)-([^{}]*))?\})?")
_LITERAL: Final = "$${ stands for the text ${ itself."

Issue = tuple[KeyPath, str, str]
"""The key of a value, what is wrong, and a hint."""


def expanded(value: Any, environment: Mapping[str, str], issues: list[Issue], key: KeyPath = ()) -> Any:
    """Return a value of the file with its references replaced; `issues` gets those that cannot be.

    As in compose files, `:-` replaces an empty variable, `-` only one that is not set. Keys are left alone.
    """
    if isinstance(value, Mapping):
        return {name: expanded(each, environment, issues, (*key, name)) for name, each in value.items()}
    if isinstance(value, list):
        return [expanded(each, environment, issues, (*key, number)) for number, each in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replaced(found: re.Match[str]) -> str:
        escaped, name, colon, default = found.groups()
        if escaped:
            return found[0][1:]
        if name is None:
            issues.append((key, "it has a ${ that begins no ${NAME} or ${NAME:-default}", _LITERAL))
            return found[0]
        given = environment.get(name)
        if given is None or (colon and not given):
            given = default
        if given is None:
            issues.append((key, f"the variable {name} is not set", f"Set it, or give a default. {_LITERAL}"))
            return found[0]
        return given

    return type(value)(_REFERENCE.sub(replaced, value))
