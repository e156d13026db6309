"""Host names that requests may use: protection against web pages that use DNS rebinding."""

import ipaddress
from collections.abc import Iterable
from typing import Final

from cotenant.domain.errors import ForeignPage, UntrustedHost

_LOCAL: Final = (".localhost", ".local", ".internal", ".lan", ".home.arpa")


class AllowedHosts:
    """Allows addresses, `localhost`, names without a dot or under a domain of local networks, and `allowed`.

    DNS rebinding needs a name in public DNS, whose owner can change its address to that of this machine.

    Pages of an `allowed` name may give orders, too, since a proxy may serve them under another `Host`. They
    are pages of that port alone (without one, of the scheme's): other programs serve the other ports.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._origins = frozenset(name.lower().rstrip(".") for name in allowed)
        self._allowed = frozenset(map(_name, self._origins))
        self._passed: set[bytes] = set()

    def check_host(self, host: bytes) -> None:
        """Check the header `Host`. Raises UntrustedHost."""
        if host in self._passed:
            return
        name = _name(host.decode("latin-1"))
        if not self._is_known(name):
            raise UntrustedHost(
                f"requests for the host {name[:80]!r} are refused",
                hint=f"If this is the daemon's name, add it to server.allowed_hosts: [{name[:80]}].",
            )
        if len(self._passed) < 64:
            self._passed.add(host)

    def check_origin(self, origin: bytes, host: bytes | None) -> None:
        """Check the origin of a request that changes something. Raises ForeignPage."""
        text = origin.decode("latin-1")
        scheme, _, where = text.partition("://")
        if where and (origin.partition(b"://")[2] == host or scheme.lower() not in ("http", "https")):
            return
        if where.lower() not in self._origins:
            raise ForeignPage(
                f"a page of {text[:80]} may not change anything here",
                hint="Use the console at this address, the command line, or an API key.",
            )

    def _is_known(self, name: str) -> bool:
        if name in self._allowed or name == "localhost" or name.endswith(_LOCAL):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        return True


def _name(host: str) -> str:
    """Return a host without its port and brackets, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].partition("%")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")
