"""Variables in compose files, by the Compose Specification ("Interpolation")."""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cotenant.domain.errors import ComposeFileError

_NO_BRACED: Final = r"[^}$]|\$(?!\{)"
_WORD: Final = rf"(?:{_NO_BRACED}|\$\{{(?:{_NO_BRACED}|\$\{{[^}}]*\}})*\}})*"
"""The default of a variable may contain variables, whose defaults may contain variables again."""
_VARIABLE: Final = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<plain>[A-Za-z_]\w*)|\{(?P<name>[A-Za-z_]\w*)"
    rf"(?:(?P<rule>:?[-?+])(?P<word>{_WORD}))?\}})"
)
_MAX_STEPS: Final = 1 << 26
"""A text with braces that do not end is searched to its end from each: as many characters take 0.1 s."""
_ENV_VALUE: Final = re.compile(r"""'([^']*)'|"([^"]*)"|#.*|(.*?)(?:\s+#.*)?$""")
"""A value of `.env`: a comment begins after white space, but not within quotes."""


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """Replace `$NAME`, `${NAME}`, `${NAME:-default}` and the other forms of Compose; an unset name is empty.

    A required value (`${NAME:?why}`) that is missing becomes empty too: the compose command reports it.
    Raises ComposeFileError for a text with far more variables than one has.
    """

    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        name, rule, word = match["plain"] or match["name"], match["rule"] or "", match["word"] or ""
        found = variables.get(name)
        present = bool(found) if rule.startswith(":") else found is not None
        if rule.endswith("+"):
            return interpolated(word, variables) if present else ""
        if rule.endswith("-") and not present:
            return interpolated(word, variables)
        return found or ""

    if text.count("${") * len(text) > _MAX_STEPS:
        raise ComposeFileError(
            f"a value of {len(text):,} characters has too many variables", hint="Check the compose files."
        )
    return _VARIABLE.sub(value, text)


def escaped(text: str) -> str:
    """Return a text that interpolation turns back into `text`."""
    return text.replace("$", "$$")


def project_variables(directory: Path, files: Sequence[str] = ()) -> dict[str, str]:
    """Return a compose command's variables: of `.env`, or of these files, overridden by the environment."""
    found: dict[str, str] = {}
    lines: list[str] = []
    for file in files or (".env",):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            lines += (directory / file).read_text(encoding="utf-8").splitlines()
    for line in lines:
        name, separator, value = line.strip().removeprefix("export ").partition("=")
        if separator and not name.startswith("#"):
            match = _ENV_VALUE.match(value.strip())
            found[name.strip()] = "".join(filter(None, match.groups())) if match else ""
    return found | dict(os.environ)
