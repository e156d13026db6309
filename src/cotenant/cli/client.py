"""A running daemon, as the commands that ask it see it."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote, urlsplit

from cotenant.domain.errors import BadSetting, CotenantError, DaemonSilent, RequestError

_DEFAULT: Final = "http://127.0.0.1:8080"
_READ_TIMEOUT_S: Final = 15.0
_CHUNK_BYTES: Final = 65536


def add_daemon_options(parser: argparse.ArgumentParser) -> None:
    """Add `--address` and `--api-key`; each has its COTENANT_ variable as the default."""
    group = parser.add_argument_group("daemon")
    group.add_argument(
        "--address",
        metavar="URL",
        default=os.environ.get("COTENANT_ADDRESS") or _DEFAULT,
        help=f"where the daemon listens (default: {_DEFAULT})",
    )
    group.add_argument(
        "--api-key", metavar="KEY", default=os.environ.get("COTENANT_API_KEY") or None, help="key to send"
    )


def model_path(name: str, action: str = "") -> str:
    """Return the path of a model in the operator's API."""
    return f"/api/models/{quote(name, safe='')}" + (f"/{action}" if action else "")


class Daemon:
    """Speaks HTTP to the daemon. Raises DaemonSilent if there is none, and what the daemon refuses."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Take address and key from the flags. Raises BadSetting."""
        self.address = _checked(args.address)
        self._key: str | None = args.api_key
        # The environment's proxies are for the world outside; the daemon is on this machine or near it.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> Any:
        """Return the JSON at a path."""
        return self._json("GET", path, _READ_TIMEOUT_S)

    def post(self, path: str, payload: object = None) -> Any:
        """Give an order, with what goes with it, and return the answer's JSON, however long it takes."""
        return self._json("POST", path, None, payload)

    def put(self, path: str, payload: object) -> Any:
        """Replace what is at a path and return the answer's JSON."""
        return self._json("PUT", path, None, payload)

    def text(self, path: str) -> str:
        """Return the plain text at a path."""
        with self._open("GET", path, _READ_TIMEOUT_S, "text/plain") as response, self._reading():
            return str(response.read().decode("utf-8", "replace"))

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield bytes as they come, until the daemon ends them."""
        with self._open("GET", path, None, "text/plain") as response:
            while True:
                with self._reading():
                    piece = response.read1(_CHUNK_BYTES)
                if not piece:
                    return
                yield piece

    def _json(self, method: str, path: str, timeout_s: float | None, payload: object = None) -> Any:
        body = b"" if payload is None else json.dumps(payload).encode()
        with self._open(method, path, timeout_s, "application/json", body) as response, self._reading():
            try:
                return json.load(response)
            except ValueError:
                raise self._stranger() from None

    def _open(self, method: str, path: str, timeout_s: float | None, accept: str, body: bytes = b"") -> Any:
        headers = {"Accept": accept, **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        if body:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            self.address + path, headers=headers, method=method, data=None if method == "GET" else body
        )
        try:
            return self._opener.open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise DaemonSilent(
                f"no daemon answers at {self.address}: {getattr(reason, 'strerror', None) or reason}",
                hint="Start one with `cotenant serve`, or say where with --address or COTENANT_ADDRESS.",
            ) from None
        except http.client.HTTPException:
            raise self._stranger() from None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell of an answer that breaks off in the middle. Raises DaemonSilent."""
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            closed = "no more came" if isinstance(error, TimeoutError) else "the connection was closed"
            why = getattr(error, "strerror", None) or closed
            raise DaemonSilent(
                f"the daemon at {self.address} broke off its answer: {why}",
                hint="It has ended, or was started anew; its log says why.",
            ) from None

    def _refusal(self, answer: urllib.error.HTTPError) -> CotenantError:
        """Return what the daemon says, as the class of fault that it is, so that the exit status fits."""
        try:
            with self._reading():
                told = json.load(answer)["error"]
            message, code = str(told["message"]), told["code"]
        except (ValueError, KeyError, TypeError):
            return self._stranger()
        if code == "unauthorized":
            return _fault(code)(message, hint="Give it with --api-key or COTENANT_API_KEY.")
        return _fault(code)(message)

    def _stranger(self) -> DaemonSilent:
        return DaemonSilent(
            f"what answers at {self.address} is not Cotenant", hint="Check --address or COTENANT_ADDRESS."
        )


def _checked(address: str) -> str:
    given = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(given)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise BadSetting(
            f"{address!r} is not an address",
            hint=f"--address or COTENANT_ADDRESS is a URL such as {_DEFAULT}.",
        )
    return given.rstrip("/")


def _fault(code: object) -> type[CotenantError]:
    """Return the class with this code; RequestError for one that this version does not know."""
    kinds: list[type[CotenantError]] = [CotenantError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return next((kind for kind in kinds if kind.code == code), RequestError)
