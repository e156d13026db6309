"""Responses of the console, with security headers; its static files, whose URLs change with their content."""

import gzip
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
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
PREFIX: Final = "/ui/static/"
_FOLDER: Final = Path(__file__).with_name("static")
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


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


@dataclass(frozen=True, slots=True)
class Asset:
    """A file; `packed` is its body compressed with gzip."""

    content_type: str
    body: bytes
    packed: bytes


@cache
def assets() -> dict[str, Asset]:
    """Read all files, by path below `static`."""
    found = {}
    for file in _FOLDER.rglob("*"):
        if kind := _TYPES.get(file.suffix):
            body = file.read_bytes()
            path = file.relative_to(_FOLDER).as_posix()
            found[path] = Asset(kind, body, gzip.compress(body, 9, mtime=0))
    return found


@cache
def version() -> str:
    """Return a digest of all files: modules import each other, so their URLs must change together."""
    content = b"".join(path.encode() + asset.body for path, asset in sorted(assets().items()))
    return hashlib.sha256(content).hexdigest()[:12]


def asset_url(path: str) -> str:
    """Return the URL of a file. Raises KeyError if there is none."""
    assets()[path]
    return f"{PREFIX}{version()}/{path}"
