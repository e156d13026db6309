"""Responses of the console, with security headers."""

import gzip
from collections.abc import Iterable
from typing import Final

from cotenant import asgi
from cotenant.asgi import Header, Scope, Send

_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    b"connect-src 'self'; font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
SECURITY: Final[tuple[Header, ...]] = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    # Without any referrer, browsers send `Origin: null` with forms, and the gateway would refuse them.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_PAGE: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"vary", b"accept-encoding, cookie"),
)


async def send_body(send: Send, status: int, body: bytes, headers: Iterable[Header]) -> None:
    """Send a complete response with the security headers."""
    await asgi.send_body(send, status, body, *headers, *SECURITY)


async def send_html(scope: Scope, send: Send, html: str, status: int = 200) -> None:
    """Send a page or a part of one, compressed if the browser accepts gzip."""
    body, headers = html.encode(), _PAGE
    if len(body) > 512 and accepts_gzip(scope["headers"]):
        body = gzip.compress(body, 5, mtime=0)
        headers = (*_PAGE, (b"content-encoding", b"gzip"))
    await send_body(send, status, body, headers)


async def send_redirect(send: Send, where: str, headers: Iterable[Header] = ()) -> None:
    """Redirect the browser to another page, which it requests with GET."""
    location = (b"location", where.encode("latin-1", "replace"))
    await send_body(send, 303, b"", (location, (b"cache-control", b"no-store"), *headers))


def accepts_gzip(headers: Iterable[Header]) -> bool:
    """Whether a browser accepts gzip."""
    return any(name == b"accept-encoding" and b"gzip" in value for name, value in headers)
