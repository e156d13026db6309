"""A stand-in for the hub, on a port of this machine: it lists repositories and serves ranges of files."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CHUNK = 64 * 1024


@dataclass
class StandInHub:
    """Repositories by name, each a mapping of paths to bytes. `asked` are the files and ranges asked for.

    Files are to be had at `moved_to`, if that is set.

    `lies` are paths whose bytes are not those that their checksum is of; those `untold` are listed without a
    size or a checksum, and of those `endless` no answer tells how long it is. A GET of a path in `stalls`
    gets so many bytes and no more until `go_on` is set; in `cuts`, once, its connection is closed after so
    many. `lists` are answers in place of the lists of repositories. `refusals` are statuses with which the
    next requests for a path are answered, in turn; None serves it.
    """

    repositories: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    lies: set[str] = field(default_factory=set)
    lists: dict[str, object] = field(default_factory=dict)
    untold: set[str] = field(default_factory=set)
    endless: set[str] = field(default_factory=set)
    stalls: dict[str, int] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, list[int | None]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    moved_to: str | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)
    address: str = ""


@contextmanager
def standing_in(hub: StandInHub | None = None) -> Iterator[StandInHub]:
    """Serve a hub until the block ends."""
    hub = hub or StandInHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _handler(hub: StandInHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._file(body=False)

        def do_GET(self) -> None:
            hub.tokens.append(self.headers.get("Authorization"))
            if self.path.startswith("/api/models/"):
                self._list(urlsplit(self.path).path.removeprefix("/api/models/").partition("/revision/")[0])
            else:
                self._file(body=True)

        def _list(self, name: str) -> None:
            files = hub.repositories.get(name)
            if name in hub.lists:
                self._answer(200, json.dumps(hub.lists[name]).encode(), {"Content-Type": "application/json"})
            elif name in hub.gated:
                self._answer(403, b'{"error":"gated"}', {"X-Error-Code": "GatedRepo"})
            elif files is None:
                self._answer(404, b'{"error":"none"}', {"X-Error-Code": "RepoNotFound"})
            else:
                siblings = [
                    {
                        "rfilename": path,
                        "size": len(data),
                        "blobId": hashlib.sha1(data).hexdigest(),
                        "lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 130},
                    }
                    if path not in hub.untold
                    else {"rfilename": path}
                    for path, data in files.items()
                ]
                told = {"_id": "1", "id": name, "sha": _COMMIT, "siblings": siblings, "tags": []}
                self._answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

        def _file(self, *, body: bool) -> None:
            match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", unquote(urlsplit(self.path).path))
            files = hub.repositories.get(match[1]) if match else None
            path = match[3] if match else ""
            if files is None or path not in files:
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            if hub.moved_to is not None:
                self._answer(302, b"", {"Location": hub.moved_to + self.path})
                return
            data = files[path]
            etag = f'"{sha256(data)}"'
            headers = {
                "X-Repo-Commit": _COMMIT,
                "ETag": etag,
                "X-Linked-Etag": etag,
                "Accept-Ranges": "bytes",
            }
            headers["X-Linked-Size"] = str(len(data))
            if path in hub.lies:
                data = bytes(len(data))
            start, status = 0, 200
            if body:
                hub.asked.append((path, self.headers.get("Range")))
                refused = hub.refusals[path].pop(0) if hub.refusals.get(path) else None
                if refused is not None:
                    self._answer(refused, b"", {})
                    return
                if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
                    start, status = int(wanted[1]), 206
                    headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._answer(status, data[start:], headers, path=path if body else None, body=body)

        def _answer(
            self,
            status: int,
            data: bytes,
            headers: Mapping[str, str],
            *,
            path: str | None = None,
            body: bool = True,
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if path in hub.endless:
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if not body:
                return
            cut = hub.cuts.pop(path, None) if path else None
            if cut is not None:
                self.wfile.write(data[:cut])
                self.close_connection = True
                return
            sent = 0
            if path in hub.stalls:
                sent = hub.stalls[path]
                self.wfile.write(data[:sent])
                self.wfile.flush()
                hub.stalled.set()
                hub.go_on.wait(30)
            try:
                for at in range(sent, len(data), _CHUNK):
                    self.wfile.write(data[at : at + _CHUNK])
            except OSError:
                self.close_connection = True

    return Handler
