"""Parsers of single values of the `services` section and of `database` (see scalars.py)."""

import os
import re
import shlex
from collections.abc import Callable
from typing import Any, Final

from cotenant.config import scalars
from cotenant.config.issues import shown
from cotenant.config.scalars import Scalar
from cotenant.domain.errors import BadSetting
from cotenant.domain.units import parse_bytes

_text: Final[Callable[[Any], str]] = scalars.text().read
_DIGITS: Final = re.compile(r"[0-9]+")
_SERVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PROJECT: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PORT: Final = re.compile(r":?([1-9][0-9]{0,4})(/.*)?")
_DATABASES: Final = frozenset(["postgres", "postgresql", "postgresql+psycopg", "sqlite"])


def paths() -> Scalar:
    """A path or a list of them, `~` expanded."""

    def read(value: Any) -> tuple[str, ...]:
        items = value if isinstance(value, (list, tuple)) else [value]
        found = tuple(scalars.path().read(item) for item in items)
        if not found:
            raise BadSetting("the list is empty", hint="Write it as [first, second].")
        return found

    return Scalar(read, {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})


def command(everything: str) -> Scalar:
    """An argument vector: a list, or a text that is split as a shell would, but not run by a shell.

    The word `everything` alone is an empty vector.
    """

    def read(value: Any) -> tuple[str, ...]:
        if isinstance(value, (list, tuple)):
            found = tuple(_text(item) for item in value)
        else:
            try:
                found = tuple(shlex.split(_text(value)))
            except ValueError:
                raise BadSetting(
                    f"{shown(_text(value))} has an unclosed quotation mark",
                    hint="Write the arguments as a list: [podman-compose].",
                ) from None
        if found == (everything,):
            return ()
        if not found or not all(found):
            raise BadSetting("the command or one of its arguments is empty", hint="Write [podman, compose].")
        return (os.path.expanduser(found[0]), *found[1:])

    array = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    return Scalar(
        read, {"anyOf": [{"type": "string"}, array], "examples": [everything, ["docker", "compose"]]}
    )


def size() -> Scalar:
    """Bytes, from a number with a unit."""

    def read(value: Any) -> int:
        text = _text(value)
        if _DIGITS.fullmatch(text):
            raise BadSetting(f"{shown(text)} has no unit", hint="Write it as 6.8GiB or 650MiB.")
        return parse_bytes(text)

    return Scalar(read, {"type": "string", "examples": ["6.8GiB", "650MiB"]})


def compose_service() -> Scalar:
    """The name of a service in a compose file."""
    return _matching(_SERVICE, "be the name of a service", "Use at most 64 letters, digits and . _ -.")


def compose_project() -> Scalar:
    """The name of a compose project."""
    return _matching(
        _PROJECT, "be the name of a project", "Use at most 64 lowercase letters, digits and _ -."
    )


def variable_name() -> Scalar:
    """The name of an environment variable."""
    hint = "Use letters, digits and _, such as VRAM_BUDGET_GB."
    return _matching(_VARIABLE, "be the name of a variable", hint)


def health() -> Scalar:
    """The URL of a health check: a URL, or a port of this machine with an optional path.

    `8090` means http://127.0.0.1:8090/health, `8090/ready` means that path.
    """

    def read(value: Any) -> str:
        text = _text(value)
        short = _PORT.fullmatch(text)
        url = f"http://127.0.0.1:{short[1]}{short[2] or '/health'}" if short else text
        if not scalars.is_http_url(url):
            raise BadSetting(
                f"{shown(text)} is neither a port nor a URL",
                hint="Write 8090, 8090/ready or http://host:8090/ready.",
            )
        return url

    return Scalar(read, {"type": ["integer", "string"], "examples": [8090, "http://127.0.0.1:8090/ready"]})


def database() -> Scalar:
    """A path of a SQLite file, `~` expanded, or the URL of a PostgreSQL database."""

    def read(value: Any) -> str:
        text = _text(value)
        scheme, is_url, _ = text.partition("://")
        if not is_url:
            return os.path.expanduser(text)
        if scheme not in _DATABASES:
            # The rest of the URL is not shown: it may contain a password.
            raise BadSetting(
                f"{shown(scheme)} is not a supported database",
                hint="Give a path, or postgresql+psycopg://user@host/name.",
            )
        return text

    return Scalar(read, {"type": "string", "examples": ["postgresql+psycopg://cotenant@localhost/cotenant"]})


def _matching(pattern: re.Pattern[str], what: str, hint: str) -> Scalar:
    def read(value: Any) -> str:
        text = _text(value)
        if not pattern.fullmatch(text):
            raise BadSetting(f"{shown(text)} cannot {what}", hint=hint)
        return text

    return Scalar(read, {"type": "string", "pattern": f"^{pattern.pattern}$"})
