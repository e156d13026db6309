"""Parsers of single values of the configuration, from text or parsed flags, and their JSON types."""

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cotenant.config.issues import nearest, shown
from cotenant.config.names import NAME
from cotenant.domain.errors import BadSetting, UsageError
from cotenant.domain.models import ALL_LAYERS, MOST_LAYERS
from cotenant.domain.units import parse_duration
from cotenant.planning.manual_split import parse_split

JsonType = dict[str, Any]
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_SWITCH: Final = {"1": True, "true": True, "yes": True, "on": True} | dict.fromkeys(
    ("0", "false", "no", "off"), False
)
_NEVER: Final = frozenset(["-1", "forever"])
_MAX_DURATION_S: Final = 366 * 86400


@dataclass(frozen=True, slots=True)
class Scalar:
    """Parses one kind of value. `read` raises UsageError; `json` is its type in the JSON schema."""

    read: Callable[[Any], Any]
    json: JsonType


def whole(least: int, most: int) -> Scalar:
    """A whole number within bounds."""

    def read(value: Any) -> int:
        text = _text(value)
        if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
            raise BadSetting(
                f"{shown(text)} is not a whole number from {least:,} to {most:,}", hint="Write it in digits."
            )
        return int(text)

    return Scalar(read, {"type": "integer", "minimum": least, "maximum": most})


def share() -> Scalar:
    """A fraction from 0 to 1."""

    def read(value: Any) -> float:
        text = _text(value)
        if not _NUMBER.fullmatch(text) or float(text) > 1:
            raise BadSetting(f"{shown(text)} is not a share from 0 to 1", hint="Write it as 0.1.")
        return float(text)

    return Scalar(read, {"type": "number", "minimum": 0, "maximum": 1})


def percent() -> Scalar:
    """A percentage from 1 to 100, with or without a percent sign."""

    def read(value: Any) -> int:
        text = _text(value)
        digits = text.removesuffix("%").strip()
        if not _WHOLE.fullmatch(digits) or not 1 <= int(digits) <= 100:
            raise BadSetting(f"{shown(text)} is not a percentage from 1% to 100%", hint="Write it as 30%.")
        return int(digits)

    return Scalar(read, {"type": ["integer", "string"], "examples": ["30%"]})


def mib_or_none(most: int) -> Scalar:
    """A whole number of MiB; the word `none` is infinity."""

    def read(value: Any) -> float:
        return math.inf if value in ("none", math.inf) else float(whole(0, most).read(value))

    return Scalar(read, {"anyOf": [{"const": "none"}, {"type": "integer", "minimum": 0, "maximum": most}]})


def duration(*, least: float = 0.0) -> Scalar:
    """Seconds, from a number or a number with a unit."""

    def read(value: Any) -> float:
        seconds = parse_duration(_text(value))
        if not least <= seconds <= _MAX_DURATION_S:
            raise BadSetting(
                f"{shown(_text(value))} is too {'short' if seconds < least else 'long'}",
                hint="Write seconds or a unit, such as 30s, 5m or 1h; a year at most.",
            )
        return seconds

    return Scalar(read, {"type": ["string", "number"], "examples": ["30s", "5m", "1h", 300]})


def keep_alive() -> Scalar:
    """A duration, 0 to unload at once, or infinity for never."""

    def read(value: Any) -> float:
        text = _text(value)
        return math.inf if text in _NEVER or value == math.inf else float(duration().read(text))

    return Scalar(read, {"type": ["string", "number"], "examples": ["5m", 0, "forever"]})


def switch() -> Scalar:
    """Yes or no."""

    def read(value: Any) -> bool:
        found = _SWITCH.get(_text(value).lower())
        if found is None:
            raise BadSetting(f"{shown(_text(value))} is neither yes nor no", hint="Write true or false.")
        return found

    return Scalar(read, {"type": "boolean"})


def member(kind: type[StrEnum]) -> Scalar:
    """One word of an enumeration."""
    word = one_of(kind)
    return Scalar(lambda value: kind(word.read(value)), word.json)


def one_of(words: Iterable[str]) -> Scalar:
    """One of these words; words that are added to the iterable later are accepted too."""

    def read(value: Any) -> str:
        text = _text(value)
        if text not in list(words):
            raise BadSetting(f"{shown(text)} is not known", hint=nearest(text, words))
        return text

    return Scalar(read, {"enum": [str(each) for each in words]})


def layers() -> Scalar:
    """Layers on GPUs, as `--n-gpu-layers` takes them."""

    def read(value: Any) -> int | str:
        text = _text(value)
        if text in (ALL_LAYERS, "-1"):
            return ALL_LAYERS
        if text == MOST_LAYERS or (_WHOLE.fullmatch(text) and 0 <= int(text) < 1 << 16):
            return text if text == MOST_LAYERS else int(text)
        raise BadSetting(
            f"{shown(text)} is not a number of layers",
            hint="Write a number, auto for as many as fit, or -1 for all.",
        )

    return Scalar(read, {"type": ["integer", "string"], "examples": [-1, "auto", 33]})


def tensor_split() -> Scalar:
    """A tensor split: a list, or text with commas."""

    def read(value: Any) -> tuple[float, ...]:
        return parse_split(",".join(words().read(value)))

    return Scalar(read, {"type": ["string", "array"], "items": {"type": "number"}, "examples": ["0.6,0.4"]})


def words(everything: str | None = None) -> Scalar:
    """A list of words, or text with commas. The word `everything` alone is an empty list."""

    def read(value: Any) -> tuple[str, ...]:
        items = value if isinstance(value, (list, tuple)) else _text(value).split(",")
        found = tuple(_text(item).strip() for item in items)
        if everything is not None and found == (everything,):
            return ()
        if not found or not all(found):
            raise BadSetting("a word of the list is empty", hint="Write it as [first, second].")
        return found

    given = {"const": everything} if everything else {"type": "string"}
    return Scalar(read, {"anyOf": [given, {"type": "array", "items": {"type": ["string", "integer"]}}]})


def path(absent: str | None = None) -> Scalar:
    """A path, `~` expanded. The word `absent`, if given, means no path and is read as an empty text."""

    def read(value: Any) -> str:
        text = os.path.expanduser(str(value) if isinstance(value, Path) else _text(value))
        return "" if text == absent else text

    return Scalar(read, {"type": "string"})


def web_address() -> Scalar:
    """An HTTP or HTTPS URL."""

    def read(value: Any) -> str:
        text = _text(value)
        if not is_http_url(text):
            # The URL is not shown: those of chat webhooks contain a secret.
            raise BadSetting("it is not a URL", hint="Write http://host:port/path or https://host/path.")
        return text

    return Scalar(read, {"type": "string", "examples": ["https://example.org/hooks/gpu"]})


def is_http_url(text: str) -> bool:
    """Whether a text is a complete HTTP or HTTPS URL."""
    try:
        parts = urlsplit(text)
        is_complete = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(is_complete) and text.isascii() and text.isprintable() and " " not in text


def url_path() -> Scalar:
    """The path of a URL."""

    def read(value: Any) -> str:
        text = _text(value)
        if not text.startswith("/") or not text.isascii() or not text.isprintable() or " " in text:
            raise BadSetting(f"{shown(text)} is not the path of a URL", hint="Write it as /health.")
        return text

    return Scalar(read, {"type": "string", "examples": ["/health"]})


def name() -> Scalar:
    """A name that clients use."""

    def read(value: Any) -> str:
        text = _text(value)
        if not NAME.fullmatch(text):
            raise BadSetting(
                f"{shown(text)} cannot be a name",
                hint="Use at most 128 letters, digits and . _ : / @ + -, beginning with a letter or a digit.",
            )
        return text

    return Scalar(read, {"type": "string", "pattern": f"^{NAME.pattern}$"})


def text() -> Scalar:
    """Any text that is not empty."""
    return Scalar(_text, {"type": "string"})


def api_key() -> Scalar:
    """A key that can be sent in an HTTP header."""

    def read(value: Any) -> str:
        key = _text(value)
        if not key.isascii() or not key.isprintable() or key != key.strip():
            raise BadSetting("a key has characters that a header cannot carry", hint="Use printable ASCII.")
        return key

    return Scalar(read, {"type": "string"})


def variable_value() -> Scalar:
    """The value of an environment variable, which may be empty."""

    def read(value: Any) -> str:
        return "" if value is None else str(value) if value == "" else _text(value)

    return Scalar(read, {"type": ["string", "number", "boolean", "null"]})


def _text(value: Any) -> str:
    """Return a single value as text. Raises UsageError for a list, a mapping or nothing."""
    if isinstance(value, (str, int, float)) and value != "":
        return str(value)
    what = (
        "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, (list, tuple)) else "empty"
    )
    raise UsageError(f"it is {what} where one value is expected", hint="docs/configuration.md has examples.")
