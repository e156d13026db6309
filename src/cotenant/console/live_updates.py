"""Live parts of a page, and the stream that sends them again when they change."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cotenant.asgi import encode_json
from cotenant.console.api import ApiFault, SignedOut
from cotenant.console.responses import SECURITY
from cotenant.console.text_diff import Change, changes, count_nodes, tokens_of

_HEARTBEAT_ROUNDS: Final = 15
"""After this many rounds without changes, a comment keeps the stream alive."""
_YIELD_AFTER: Final = 20
STREAM_HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    *SECURITY,
)


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
                if rendered % _YIELD_AFTER == 0:
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
            elif silent % _HEARTBEAT_ROUNDS == 0:
                yield b": alive\n\n"
        await asyncio.sleep(every_s)


def _event(name: str, data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode_json(data))
