"""Live parts of a page, and the stream that sends them again when they change."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import unescape
from typing import Any, Final

from cotenant.asgi import encode_json
from cotenant.console.api import ApiFault, SignedOut
from cotenant.console.responses import SECURITY

STREAM_HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    *SECURITY,
)
Change = tuple[int, str | dict[str, str | None]]
"""The number of a node, with its new text or its changed attributes (None for removed ones)."""
_TOKEN: Final = re.compile(r"<[^>]*>|[^<]+")
_NAME: Final = re.compile(r"</?[^\s/>]+")
_ATTRIBUTE: Final = re.compile(r"""\s([^\s"'=<>/]+)(?:="([^"]*)"|='([^']*)')?""")
_STRUCTURAL: Final = ("hx-", "id", "data-key", "data-own")
"""Attributes that scripts identify an element by, or read only once."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a page: its template is rendered with its facts, and again only when they change.

    The template has one outermost element with `id="{{ id }}"`.
    """

    id: str
    template: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """Ordered parts, the children of the element with this id; they can be added, removed and moved."""

    id: str
    rows: Sequence[Part]


Live = Part | Rows


@dataclass(frozen=True, slots=True)
class View:
    """The current state of a page: a template with its facts, and its live parts by name."""

    template: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Live] = field(default_factory=dict)
    status: int = 200


class SentParts:
    """The parts of one page that one browser has received."""

    def __init__(self, render: Callable[[Part], str]) -> None:
        self._render = render
        self._sent: dict[str, tuple[Mapping[str, Any], Sequence[str]]] = {}
        self._orders: dict[str, list[str]] = {}

    async def changes(self, parts: Mapping[str, Live]) -> dict[str, Any] | None:
        """Return the differences from what was sent last, None if there are none.

        `parts` are [id, HTML] of new or restructured parts; `changes` are [id, number of nodes, Changes] of
        parts in which only text and attributes differ; `rows` are ids in order.
        """
        replaced: list[tuple[str, str]] = []
        changed: list[tuple[str, int, list[Change]]] = []
        orders: dict[str, list[str]] = {}
        seen: set[str] = set()
        rendered = 0
        for live in parts.values():
            for piece in live.rows if isinstance(live, Rows) else (live,):
                seen.add(piece.id)
                facts, before = self._sent.get(piece.id, (None, ()))
                if facts == piece.facts:
                    continue
                html = self._render(piece)
                now = tokens_of(html)
                self._sent[piece.id] = piece.facts, now
                differences = changes(before, now)
                if differences is None:
                    replaced.append((piece.id, html))
                elif differences:
                    changed.append((piece.id, count_nodes(now), differences))
                rendered += 1
                if rendered % 20 == 0:
                    # Do not delay requests to models while rendering a long table.
                    await asyncio.sleep(0)
            if isinstance(live, Rows):
                order = [piece.id for piece in live.rows]
                if self._orders.get(live.id) != order:
                    self._orders[live.id] = orders[live.id] = order
        for gone in self._sent.keys() - seen:
            del self._sent[gone]
        news = {"parts": replaced, "changes": changed, "rows": orders}
        return news if any(news.values()) else None


async def events_of(
    show: Callable[[], Awaitable[View]], render: Callable[[Part], str], every_s: float
) -> AsyncGenerator[bytes, None]:
    """Yield the changes of a page as server-sent events, until the caller is signed out."""
    sent, silent, troubled = SentParts(render), 0, False
    yield b"retry: 1000\n\n"
    while True:
        try:
            view = await show()
        except SignedOut:
            yield _event("login", {})
            return
        except ApiFault as fault:
            if not troubled:
                yield _event("trouble", {"text": fault.message})
            troubled = True
        else:
            if troubled:
                yield _event("trouble", {"text": ""})
            troubled = False
            news = await sent.changes(view.parts)
            silent = 0 if news else silent + 1
            if news:
                yield _event("parts", news)
            elif silent % 15 == 0:
                # A comment keeps the stream alive.
                yield b": alive\n\n"
        await asyncio.sleep(every_s)


def _event(name: str, data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode_json(data))


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
