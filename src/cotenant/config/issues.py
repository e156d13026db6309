"""What is wrong with a setting, and where it was given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cotenant.domain.errors import BadSetting

KeyPath = tuple[str | int, ...]
_MAX_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class ConfigIssue:
    """One thing wrong: `source` is the file, or the variable or flag that gave the value."""

    source: str
    what: str
    hint: str
    key: KeyPath = ()
    line: int | None = None

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}, line {self.line}"
        return f"{where}: {dotted(self.key)}: {self.what}" if self.key else f"{where}: {self.what}"


def refusal(issues: Sequence[ConfigIssue]) -> BadSetting:
    """Return the exception that tells the first issue and how many more there are, and carries all."""
    first, more = issues[0], len(issues) - 1
    return BadSetting(
        f"{first} (and {more} more)" if more else str(first),
        hint=f"{first.hint} `cotenant models --check` lists all of them." if more else first.hint,
        problems=tuple(str(issue) for issue in issues),
    )


def dotted(key: KeyPath) -> str:
    """Render a key path as people write it: `models[0].ctx`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{shown(part)}" if text else shown(part)
    return text


def shown(value: Any) -> str:
    """Render a value or a key on one line, cut where it is long."""
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the hint for an unknown name: the nearest right one, else all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:_MAX_SHOWN].lower(), names, n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(names)}."
