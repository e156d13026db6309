"""What a client is told while it waits, as a comment in its event stream."""

from __future__ import annotations

from typing import Final

from cotenant.domain.decisions import Outlook
from cotenant.domain.units import format_duration
from cotenant.gateway.asgi import Header

STREAM_HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
)

_SUFFIXES: Final = {1: "st", 2: "nd", 3: "rd"}


def wait_comment(outlook: Outlook | None, place: int | None) -> bytes:
    """Render `: waiting, 2nd in line, about 12.0 s (loading llama-7b)` and what ends an event."""
    text = ": waiting"
    if place:
        text += f", {_ordinal(place)} in line"
    if outlook is None:
        return text.encode() + b"\n\n"
    if outlook.eta_s is not None:
        text += f", about {format_duration(outlook.eta_s)}"
    if outlook.waits_for:
        text += f" ({' '.join(outlook.waits_for.split())})"
    return text.encode() + b"\n\n"


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{_SUFFIXES.get(number % 10, 'th')}"
