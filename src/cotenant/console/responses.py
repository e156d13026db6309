"""Responses of the console: pages with their security headers."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from typing import Final

from cotenant import asgi
from cotenant.asgi import Header, Send

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "font-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
SECURITY: Final[tuple[Header, ...]] = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    # Without a referrer at all, browsers send `Origin: null` with forms, and no order would come from here.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_WORTH_PACKING: Final = 512
_PAGE: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"vary", b"accept-encoding, cookie"),
)


async def send_body(send: Send, status: int, body: bytes, headers: Iterable[Header]) -> None:
    """Send a whole response, with the headers that keep a page from doing what it should not."""
    await asgi.send_body(send, status, body, *headers, *SECURITY)


async def send_html(
    send: Send, status: int, html: str, *, packed: bool, headers: Iterable[Header] = ()
) -> None:
    """Send a page or a piece of one; `packed` where the browser takes gzip."""
    body = html.encode()
    extra: list[Header] = [*headers]
    if packed and len(body) > _WORTH_PACKING:
        body = gzip.compress(body, 5, mtime=0)
        extra.append((b"content-encoding", b"gzip"))
    await send_body(send, status, body, (*_PAGE, *extra))


async def send_redirect(send: Send, where: str, headers: Iterable[Header] = ()) -> None:
    """Send the browser to another page, which it GETs."""
    location = (b"location", where.encode("latin-1", "replace"))
    await send_body(send, 303, b"", (location, (b"cache-control", b"no-store"), *headers))


def accepts_gzip(headers: Iterable[Header]) -> bool:
    """Whether a browser takes gzip."""
    return any(name == b"accept-encoding" and b"gzip" in value for name, value in headers)
