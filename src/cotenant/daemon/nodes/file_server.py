"""Serves single files of this machine to the agents that fetch them, by ranges."""

import contextlib
import ipaddress
import os
import re
import secrets
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from cotenant.domain.errors import InsecureBind

_RANGE: Final = re.compile(r"bytes=(\d+)-")


class FileServer:
    """Serves what is on offer, each file by a token of its own, at the address that the machine reaches.

    Files travel in clear, so only over private networks. It listens on any free port once there is an offer.
    """

    def __init__(self) -> None:
        self._offers: dict[str, Path] = {}
        self._servers: dict[str, ThreadingHTTPServer] = {}

    @contextlib.contextmanager
    def offering(
        self, path: Path, reached_by: tuple[str, int] | None
    ) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Offer a file to whoever is at an address; yield its URL and the headers to send.

        Raises InsecureBind.
        """
        address = _own_address(reached_by)
        token = secrets.token_urlsafe(24)
        self._offers[token] = path
        try:
            host = f"[{address}]" if ":" in address else address
            url = f"http://{host}:{self._listening(address).server_port}/file"
            yield url, {"Authorization": f"Bearer {token}"}
        finally:
            del self._offers[token]

    def close(self) -> None:
        """Listen no longer."""
        while self._servers:
            _, server = self._servers.popitem()
            server.shutdown()
            server.server_close()

    def _listening(self, address: str) -> ThreadingHTTPServer:
        if address not in self._servers:
            server = _Server((address, 0), _handler(self._offers))
            self._servers[address] = server
            threading.Thread(target=server.serve_forever, name="files", daemon=True).start()
        return self._servers[address]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    address_family = socket.AF_INET

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


def _own_address(reached_by: tuple[str, int] | None) -> str:
    """Return the address of this machine that another one sees; nothing is sent to find out."""
    if reached_by is None:
        return "127.0.0.1"
    family = socket.AF_INET6 if ":" in reached_by[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(reached_by)
        found = str(probe.getsockname()[0])
    if not ipaddress.ip_address(found).is_private:
        raise InsecureBind(
            f"a file would be sent in clear from {found}, which is not of a private network",
            hint="Set `nodes.pull: hub`, or copy the file.",
        )
    return found


def _handler(offers: Mapping[str, Path]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 60.0

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = offers.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
            if path is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                file = path.open("rb")
            except OSError:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            with file:
                size = os.fstat(file.fileno()).st_size
                asked = _RANGE.fullmatch(self.headers.get("Range") or "bytes=0-")
                start = int(asked[1]) if asked else 0
                if start > size:
                    self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                    return
                self.send_response(HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
                self.send_header("Content-Length", str(size - start))
                self.end_headers()
                file.seek(start)
                with contextlib.suppress(OSError):
                    shutil.copyfileobj(file, self.wfile, 1 << 20)

    return Handler
