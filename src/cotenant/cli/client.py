"""A client of the running daemon, for the commands that need one."""

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote, urlsplit

from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadSetting, CotenantError, DaemonSilent, RequestError

_DEFAULT: Final = "http://127.0.0.1:8080"
_READ_TIMEOUT_S: Final = 15.0
_TEXT: Final = "text/plain"


def add_daemon_options(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Add `--address` and `--api-key`; each has its COTENANT_ variable as the default.

    The parser of an action has them `again`: its command's stand where they are not given to the action.
    """
    group = parser.add_argument_group("daemon")
    group.add_argument(
        "--address",
        metavar="URL",
        default=argparse.SUPPRESS if again else os.environ.get("COTENANT_ADDRESS") or None,
        help=f"where the daemon listens (default: as the configuration of `serve` says, else {_DEFAULT})",
    )
    group.add_argument(
        "--api-key",
        metavar="KEY",
        default=argparse.SUPPRESS if again else os.environ.get("COTENANT_API_KEY") or None,
        help="key to send",
    )


def _configured() -> str:
    """Return the address at which `serve` would listen if it were started here."""
    from cotenant.config.layers import server_address

    given, port = server_address(os.environ)
    given = given or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(given, given)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{port or 8080}"


def model_path(name: str, action: str = "") -> str:
    """Return the path of a model in the operator's API."""
    return f"/api/models/{quote(name, safe='')}" + (f"/{action}" if action else "")


class Daemon:
    """Speaks HTTP to the daemon. Raises DaemonSilent if none answers, else the error that it reports."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Take address and key from the flags. Raises BadSetting."""
        address = args.address or _configured()
        given = address if "://" in address else f"http://{address}"
        self.address = given.rstrip("/")
        try:
            parts = urlsplit(self.address)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or port == 0 or parts.scheme not in ("http", "https"):
            raise BadSetting(
                f"{address!r} is not an address",
                hint=f"--address or COTENANT_ADDRESS is a URL such as {_DEFAULT}.",
            )
        tls = parts.scheme == "https"
        self._endpoint = Endpoint(host, port or (443 if tls else 80), tls, parts.path, key=args.api_key)

    def get(self, path: str, timeout_s: float = _READ_TIMEOUT_S) -> Any:
        """Return the JSON at a path."""
        return self._json("GET", path, timeout_s)

    def send(self, path: str, payload: object = None, method: str = "POST") -> Any:
        """Send a request and return the JSON of the response. There is no time limit."""
        return self._json(method, path, None, payload)

    def text(self, path: str) -> str:
        """Return the plain text at a path."""
        return b"".join(self._body("GET", path, _READ_TIMEOUT_S, accept=_TEXT)).decode("utf-8", "replace")

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield bytes as they arrive, until the daemon ends the response."""
        return self._body("GET", path, None, accept=_TEXT)

    def lines(self, path: str, payload: object) -> Iterator[Any]:
        """Send a request and yield the JSON of each line of the response, as they arrive.

        Raises the error that a line is.
        """
        rest = b""
        for piece in self._body("POST", path, None, payload):
            *whole, rest = (rest + piece).split(b"\n")
            for line in filter(None, whole):
                value = json.loads(line)
                if "error" in value:
                    raise self._refusal(line)
                yield value

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, by its address."""
        return self._endpoint.host in ("127.0.0.1", "localhost", "::1")

    def _json(self, method: str, path: str, timeout_s: float | None, payload: object = None) -> Any:
        body = b"".join(self._body(method, path, timeout_s, payload))
        try:
            return json.loads(body)
        except ValueError:
            raise self._not_cotenant() from None

    def _body(
        self,
        method: str,
        path: str,
        timeout_s: float | None,
        payload: object = None,
        accept: str = "application/json",
    ) -> Iterator[bytes]:
        """Yield the body of the response as it arrives; `timeout_s` limits each step."""
        # The daemon's commands need no network library before they run.
        from cotenant.http import blocking
        from cotenant.http.client import Limits, Request, describe
        from cotenant.http.connection import NotHttp

        begun = False
        limits = Limits(timeout_s, timeout_s, timeout_s, body_bytes=None)
        try:
            with blocking.opened(Request(self._endpoint, method, path, payload, accept), limits) as (
                status,
                pieces,
            ):
                begun = True
                if status >= 300:
                    raise self._refusal(b"".join(pieces))
                yield from pieces
        except NotHttp:
            raise self._not_cotenant() from None
        except OSError as error:
            if begun:
                raise DaemonSilent(
                    f"the daemon at {self.address} did not finish its answer: {describe(error)}",
                    hint="It has ended, or was restarted; its log says why.",
                ) from None
            raise DaemonSilent(
                f"no daemon answers at {self.address}: {describe(error)}",
                hint="Start one with `cotenant serve`, or name it with --address or COTENANT_ADDRESS.",
            ) from None

    def _refusal(self, body: bytes) -> CotenantError:
        """Return the error that the daemon reports, with its own class, which decides the exit status."""
        try:
            error = json.loads(body)["error"]
            message, code = str(error["message"]), error["code"]
        except (ValueError, KeyError, TypeError):
            return self._not_cotenant()
        hint = "Give it with --api-key or COTENANT_API_KEY." if code == "unauthorized" else ""
        return _error_class(code)(message, hint=hint)

    def _not_cotenant(self) -> DaemonSilent:
        return DaemonSilent(
            f"the server at {self.address} is not Cotenant", hint="Check --address or COTENANT_ADDRESS."
        )


def _error_class(code: object) -> type[CotenantError]:
    """Return the class with this code; RequestError for one that this version does not know."""
    kinds: list[type[CotenantError]] = [CotenantError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return next((kind for kind in kinds if kind.code == code), RequestError)
