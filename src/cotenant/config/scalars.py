"""Parsers of single values of the configuration, from text or parsed flags, and their JSON types."""

import math
import os
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cotenant.config.issues import nearest, shown, wrong
from cotenant.config.names import NAME
from cotenant.domain.errors import BadSetting, UsageError
from cotenant.domain.models import ALL_LAYERS, FEWEST_EXPERTS, MOST_LAYERS
from cotenant.domain.units import parse_bytes, parse_duration
from cotenant.planning.manual_split import parse_split

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_PLACEHOLDER: Final = re.compile(
    r"\$[A-Z_][A-Z0-9_]*|\$\(.*\)|%[A-Z_][A-Z0-9_]*%|\{\{.*\}\}"
    r"|os\.environ/.*|env:.*|<[\w -]+>|(?i:bearer) .*"
)
"""References as shells, LiteLLM, Ansible and others write them, blanks to fill in, and a whole header."""
_PORT: Final = re.compile(r":?([1-9][0-9]{0,4})(/.*)?")
_SWITCH: Final = {"1": True, "true": True, "yes": True, "on": True} | dict.fromkeys(
    ("0", "false", "no", "off"), False
)
_DATABASES: Final = frozenset(["postgres", "postgresql", "postgresql+psycopg", "sqlite"])
_MAX_DURATION_S: Final = 366 * 86400


@dataclass(frozen=True, slots=True, eq=False)
class Scalar:
    """Parses one kind of value, also as the annotation of a pydantic field: `Annotated[int, whole(0, 9)]`.

    `read` raises UsageError; `json` is its type in the JSON schema. Compared by identity, since pydantic
    hashes it.
    """

    read: Callable[[Any], Any]
    json: dict[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        # Imported late: the command line reads its flags without pydantic.
        from pydantic_core import core_schema

        def read(value: Any) -> Any:
            try:
                return self.read(value)
            except UsageError as error:
                raise wrong(error.message, error.hint) from None

        return core_schema.no_info_plain_validator_function(read)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return dict(self.json)


def scalar(**json: Any) -> Callable[[Callable[[Any], Any]], Scalar]:
    """Make a parser a Scalar of this JSON type."""
    return lambda read: Scalar(read, json)


def _of_text(**json: Any) -> Callable[[Callable[[str], Any]], Scalar]:
    """Make a parser of text a Scalar of this JSON type, which takes any single value."""
    return lambda read: Scalar(lambda value: read(_text(value)), json)


def _text(value: Any) -> str:
    """Return a single value as text. Raises UsageError for a list, a mapping or nothing."""
    if isinstance(value, (str, int, float)) and value != "":
        return str(value)
    what = (
        "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, (list, tuple)) else "empty"
    )
    raise UsageError(f"it is {what} where one value is expected", hint="docs/configuration.md has examples.")


def whole(least: int, most: int) -> Scalar:
    """A whole number within bounds."""

    @_of_text(type="integer", minimum=least, maximum=most)
    def read(text: str) -> int:
        if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
            raise BadSetting(
                f"{shown(text)} is not a whole number from {least:,} to {most:,}", hint="Write it in digits."
            )
        return int(text)

    return read


@_of_text(type="number", minimum=0, maximum=1)
def share(text: str) -> float:
    """A fraction from 0 to 1."""
    if not _NUMBER.fullmatch(text) or float(text) > 1:
        raise BadSetting(f"{shown(text)} is not a share from 0 to 1", hint="Write it as 0.1.")
    return float(text)


@_of_text(type=["integer", "string"], examples=["30%"])
def percent(text: str) -> int:
    """A percentage from 1 to 100, with or without a percent sign."""
    digits = text.removesuffix("%").strip()
    if not _WHOLE.fullmatch(digits) or not 1 <= int(digits) <= 100:
        raise BadSetting(f"{shown(text)} is not a percentage from 1% to 100%", hint="Write it as 30%.")
    return int(digits)


def mib_or_none(most: int) -> Scalar:
    """A whole number of MiB; the word `none` is infinity."""
    number = whole(0, most)
    return Scalar(
        lambda value: math.inf if value in ("none", math.inf) else float(number.read(value)),
        {"anyOf": [{"const": "none"}, number.json]},
    )


def duration(least: float = 0.0) -> Scalar:
    """Seconds, from a number or a number with a unit."""

    @_of_text(type=["string", "number"], examples=["30s", "5m", "1h", 300])
    def read(text: str) -> float:
        seconds = parse_duration(text)
        if not least <= seconds <= _MAX_DURATION_S:
            raise BadSetting(
                f"{shown(text)} is too {'short' if seconds < least else 'long'}",
                hint="Write seconds or a unit, such as 30s, 5m or 1h; a year at most.",
            )
        return seconds

    return read


@scalar(type=["string", "number"], examples=["5m", 0, "forever"])
def keep_alive(value: Any) -> float:
    """A duration, 0 to unload at once, or infinity for never, which Ollama writes as any negative one."""
    if value == math.inf or _text(value) == "forever":
        return math.inf
    text = _text(value)
    seconds = duration().read(text.removeprefix("-"))
    return math.inf if seconds and text.startswith("-") else seconds


@_of_text(type="boolean")
def switch(text: str) -> bool:
    """Yes or no."""
    if text.lower() not in _SWITCH:
        raise BadSetting(f"{shown(text)} is neither yes nor no", hint="Write true or false.")
    return _SWITCH[text.lower()]


def member(kind: type[StrEnum]) -> Scalar:
    """One word of an enumeration."""
    word = one_of(kind)
    return Scalar(lambda value: kind(word.read(value)), word.json)


def one_of(words: Iterable[str]) -> Scalar:
    """One of these words; words that are added to the iterable later are accepted too."""

    @_of_text(enum=[str(each) for each in words])
    def read(text: str) -> str:
        if text not in list(words):
            raise BadSetting(f"{shown(text)} is not known", hint=nearest(text, words))
        return text

    return read


@_of_text(type=["integer", "string"], examples=[-1, "auto", 33])
def layers(text: str) -> int | str:
    """Layers on GPUs, as `--n-gpu-layers` takes them."""
    if text in (ALL_LAYERS, "-1"):
        return ALL_LAYERS
    if text == MOST_LAYERS or (_WHOLE.fullmatch(text) and 0 <= int(text) < 1 << 16):
        return text if text == MOST_LAYERS else int(text)
    raise BadSetting(
        f"{shown(text)} is not a number of layers",
        hint="Write a number, auto for as many as fit, or -1 for all.",
    )


def _number_or(word: str, least: int, most: int, what: str, example: int) -> Scalar:
    @_of_text(type=["integer", "string"], examples=[example, word])
    def read(text: str) -> int | str:
        if text == word or (_WHOLE.fullmatch(text) and least <= int(text) <= most):
            return text if text == word else int(text)
        hint = f"Write a number from {least} to {most:,}, or {word}."
        raise BadSetting(f"{shown(text)} is not a number of {what}", hint=hint)

    return read


gpu_count = _number_or("all", 1, 64, "GPUs", 2)
expert_blocks = _number_or(FEWEST_EXPERTS, 0, 1 << 16, "blocks", 14)


@scalar(type=["string", "array"], items={"type": "number"}, examples=["0.6,0.4"])
def tensor_split(value: Any) -> tuple[float, ...]:
    """A tensor split: a list, or text with commas."""
    return parse_split(",".join(words().read(value)))


def words(everything: str | None = None) -> Scalar:
    """A list of words, or text with commas. The word `everything` alone is an empty list."""
    given = {"const": everything} if everything else {"type": "string"}

    @scalar(anyOf=[given, {"type": "array", "items": {"type": ["string", "integer"]}}])
    def read(value: Any) -> tuple[str, ...]:
        items = value if isinstance(value, (list, tuple)) else _text(value).split(",")
        found = tuple(_text(item).strip() for item in items)
        if everything is not None and found == (everything,):
            return ()
        if not found or not all(found):
            raise BadSetting("a word of the list is empty", hint="Write it as [first, second].")
        return found

    return read


@scalar(type="string")
def path(value: Any) -> str:
    """A path, `~` expanded."""
    return os.path.expanduser(str(value) if isinstance(value, Path) else _text(value))


@scalar(type="string")
def projector(value: Any) -> str:
    """A path, `~` expanded; the word `none` is an empty text."""
    return "" if _text(value) == "none" else os.path.expanduser(_text(value))


@scalar(anyOf=[{"type": "string"}, {"type": "array", "items": {"type": "string"}}])
def paths(value: Any) -> tuple[str, ...]:
    """A path or a list of them, `~` expanded."""
    found = tuple(path.read(item) for item in (value if isinstance(value, (list, tuple)) else [value]))
    if not found:
        raise BadSetting("the list is empty", hint="Write it as [first, second].")
    return found


def command(everything: str) -> Scalar:
    """An argument vector: a list, or a text that is split as a shell would, but not run by a shell.

    The word `everything` alone is an empty vector.
    """
    array = {"type": "array", "items": {"type": "string"}, "minItems": 1}

    @scalar(anyOf=[{"type": "string"}, array], examples=[everything, ["docker", "compose"]])
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

    return read


@_of_text(type="string", examples=["6.8GiB", "650MiB"])
def size(text: str) -> int:
    """Bytes, from a number with a unit."""
    if re.fullmatch(r"[0-9]+", text):
        raise BadSetting(f"{shown(text)} has no unit", hint="Write it as 6.8GiB or 650MiB.")
    return parse_bytes(text)


@_of_text(type="string", examples=["https://example.org/hooks/gpu"])
def web_address(text: str) -> str:
    """An HTTP or HTTPS URL."""
    if not _is_http_url(text):
        # The URL is not shown: those of chat webhooks contain a secret.
        raise BadSetting("it is not a URL", hint="Write http://host:port/path or https://host/path.")
    return text


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        is_complete = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(is_complete) and text.isascii() and text.isprintable() and " " not in text


@_of_text(type="string", examples=["/health"])
def url_path(text: str) -> str:
    """The path of a URL."""
    if not text.startswith("/") or not text.isascii() or not text.isprintable() or " " in text:
        raise BadSetting(f"{shown(text)} is not the path of a URL", hint="Write it as /health.")
    return text


@_of_text(type=["integer", "string"], examples=[8090, "http://127.0.0.1:8090/ready"])
def health(text: str) -> str:
    """The URL of a health check: a URL, or a port of this machine with an optional path.

    `8090` means http://127.0.0.1:8090/health, `8090/ready` means that path.
    """
    short = _PORT.fullmatch(text)
    url = f"http://127.0.0.1:{short[1]}{short[2] or '/health'}" if short else text
    if not _is_http_url(url):
        raise BadSetting(
            f"{shown(text)} is neither a port nor a URL",
            hint="Write 8090, 8090/ready or http://host:8090/ready.",
        )
    return url


@_of_text(type="string", examples=["postgresql+psycopg://cotenant@localhost/cotenant"])
def database(text: str) -> str:
    """A path of a SQLite file, `~` expanded, or the URL of a PostgreSQL database."""
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


text = Scalar(_text, {"type": "string"})
"""Any text that is not empty."""


@_of_text(type="string")
def api_key(key: str) -> str:
    """A key that can be sent in an HTTP header."""
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise BadSetting("a key has characters that a header cannot carry", hint="Use printable ASCII.")
    if _PLACEHOLDER.fullmatch(key):
        # It would lock the daemon, or be sent to a provider. It is not shown: it may be a key after all.
        raise BadSetting(
            "it is no key, but how one is named elsewhere",
            hint="Write the key alone, or ${NAME} for that in an environment variable.",
        )
    return key


@scalar(type=["string", "number", "boolean", "null"])
def variable_value(value: Any) -> str:
    """The value of an environment variable, which may be empty."""
    return "" if value in (None, "") else _text(value)


def matching(pattern: str, what: str, hint: str) -> Scalar:
    """A text that matches; `what` says what others cannot be."""

    @_of_text(type="string", pattern=f"^{pattern}$")
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise BadSetting(f"{shown(text)} cannot be {what}", hint=hint)
        return text

    return read


name = matching(
    NAME.pattern,
    "a name",
    "Use at most 128 letters, digits and . _ : / @ + -, beginning with a letter or a digit.",
)
"""A name that clients use."""
compose_service = matching(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "the name of a service", "Use at most 64 letters, digits and . _ -."
)
compose_project = matching(
    r"[a-z0-9][a-z0-9_-]{0,63}",
    "the name of a project",
    "Use at most 64 lowercase letters, digits and _ -.",
)
variable_name = matching(
    r"[A-Za-z_][A-Za-z0-9_]{0,127}",
    "the name of a variable",
    "Use letters, digits and _, such as VRAM_BUDGET_GB.",
)
origin = matching(
    r"\*|[a-z][a-z0-9+.-]{1,31}://[A-Za-z0-9_.-]{1,253}(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?",
    "the origin of a page",
    "Write scheme, host and port as browsers send them, such as https://chat.example.com, or * for any.",
)
