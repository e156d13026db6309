"""Differences between two renderings of a part, so that the browser need not parse all of it again."""

import re
from collections.abc import Sequence
from html import unescape
from typing import Final

Change = tuple[int, str | dict[str, str | None]]
"""The number of a node, with its new text or its changed attributes (None for removed ones)."""

_TOKEN: Final = re.compile(r"<[^>]*>|[^<]+")
_NAME: Final = re.compile(r"</?[^\s/>]+")
_ATTRIBUTE: Final = re.compile(r"""\s([^\s"'=<>/]+)(?:="([^"]*)"|='([^']*)')?""")
_STRUCTURAL: Final = ("hx-", "id", "data-key", "data-own")
"""Attributes that scripts identify an element by, or read only once."""


def tokens_of(html: str) -> list[str]:
    """Split HTML into its tags and the texts between them."""
    return _TOKEN.findall(html)


def count_nodes(tokens: Sequence[str]) -> int:
    """Return the number of elements and texts; `data-own` elements of a part are empty."""
    return len(tokens) - sum(token[:2] == "</" for token in tokens)


def changes(before: Sequence[str], after: Sequence[str]) -> list[Change] | None:
    """Return the changes of text and attributes; None if the elements themselves differ.

    Nodes are elements and texts, numbered in document order, the outermost element 0.
    """
    if len(before) != len(after):
        return None
    found: list[Change] = []
    number, seen = -1, 0
    for at, (old, new) in enumerate(zip(before, after, strict=True), 1):
        if old == new:
            continue
        number += count_nodes(after[seen:at])
        seen = at
        if old[0] != "<" != new[0]:
            found.append((number, unescape(new)))
            continue
        if (attributes := _changed(old, new)) is None:
            return None
        if attributes:
            found.append((number, attributes))
    return found


def _changed(old: str, new: str) -> dict[str, str | None] | None:
    old_name, new_name = (name and name[0] for name in map(_NAME.match, (old, new)))
    if old_name != new_name:
        return None
    had, has = (
        {name: double or single for name, double, single in _ATTRIBUTE.findall(tag)} for tag in (old, new)
    )
    found: dict[str, str | None] = {
        name: unescape(value) for name, value in has.items() if had.get(name) != value
    }
    found |= dict.fromkeys(name for name in had if name not in has)
    if any(name.startswith(_STRUCTURAL) for name in found):
        return None
    for name in has.get("data-client", "").split():
        found.pop(name, None)
    return found
