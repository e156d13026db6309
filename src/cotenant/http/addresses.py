"""Addresses of APIs and of other servers, read from URLs."""

from dataclasses import replace
from typing import Final
from urllib.parse import SplitResult, urlsplit

from cotenant.domain.engines import Endpoint

_PORTS: Final = {"http": 80, "https": 443}


def api_endpoint(url: str, key: str | None = None) -> Endpoint:
    """Read the address of an API. Raises ValueError."""
    parts = http_parts(url)
    if parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not an address")
    if not is_plain(url):
        raise ValueError(f"{url!r} has characters that an address cannot have")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ValueError("the API key has characters that a header cannot have")
    return replace(Endpoint.at(parts), key=key)


def http_parts(url: str) -> SplitResult:
    """Split the URL of a server. Raises ValueError if it is not an HTTP URL."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"{url!r} is not an address")
    return parts


def endpoint_of(parts: SplitResult) -> Endpoint:
    """Return where the server of a URL listens."""
    return Endpoint(parts.hostname or "", parts.port or _PORTS[parts.scheme], parts.scheme == "https")


def is_plain(target: str) -> bool:
    """Whether a request may have this target: printable ASCII without spaces."""
    return target.isascii() and target.isprintable() and " " not in target
