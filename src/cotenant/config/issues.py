"""Problems with settings, and where each setting was given."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cotenant.domain.errors import BadSetting

KeyPath = tuple[str | int, ...]
CONFIG_ISSUE: Final = "issue"
"""The type of pydantic errors that contain our own message."""
_MAX_SHOWN: Final = 60
_MEANT: Final = "Did you mean"
_SHOWN_HINTS: Final = (_MEANT, "Give it as")
"""Hints that name what belongs there are shown with each problem, others with the first one alone."""


@dataclass(frozen=True, slots=True)
class ConfigIssue:
    """A problem with a setting; `source` is the file, variable or flag that set it."""

    source: str
    what: str
    hint: str
    key: KeyPath = ()
    line: int | None = None

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}, line {self.line}"
        return f"{where}: {dotted(self.key)}: {self.what}" if self.key else f"{where}: {self.what}"


def refusal(issues: Sequence[ConfigIssue]) -> BadSetting:
    """Return an exception whose message names the first issue and the number of others; it contains all."""
    first, more = issues[0], len(issues) - 1
    return BadSetting(
        f"{first} (and {more} more)" if more else str(first),
        hint=f"{first.hint} `cotenant models --check` lists all of them." if more else first.hint,
        problems=tuple(
            f"{each} ({each.hint})" if each.hint.startswith(_SHOWN_HINTS) else str(each) for each in issues
        ),
    )


def wrong(what: str, hint: str) -> ValueError:
    """Return an error for pydantic with a message and a hint."""
    from pydantic_core import PydanticCustomError

    return PydanticCustomError(CONFIG_ISSUE, "{what}", {"what": what, "hint": hint})


def dotted(key: KeyPath) -> str:
    """Format a key path: `models[0].ctx`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{shown(part)}" if text else shown(part)
    return text


def shown(value: Any) -> str:
    """Format a value or a key on one line, at most 60 characters."""
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown name: the closest known name, else all of them."""
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(name[:_MAX_SHOWN].lower(), names, n=1, cutoff=0.5)
    return f"{_MEANT} {near[0]}?" if near else f"Known here: {', '.join(names)}."
