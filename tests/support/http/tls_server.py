"""A server of OpenAI's API behind TLS, under a path of its own, and certificates for it made on the spot."""

from __future__ import annotations

import contextlib
import functools
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.debian import installed

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


@dataclass(frozen=True)
class Authority:
    """Signs certificates; who trusts it names `certificate`."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "authority.pem"

    @classmethod
    def made(cls, folder: Path) -> Authority:
        made = cls(folder)
        _openssl(
            *("req", "-x509", *_CURVE, "-subj", "/CN=authority of the tests", "-out", made.certificate),
            *("-keyout", folder / "authority.key", "-addext", "keyUsage=critical,keyCertSign"),
        )
        return made

    def signed(self, name: str, *addresses: str) -> tuple[Path, Path]:
        """Return a certificate for these addresses, else 127.0.0.1, and its key."""
        names = ",".join(f"IP:{each}" for each in addresses or ("127.0.0.1",))
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        _openssl(
            *("req", "-x509", *_CURVE, "-subj", f"/CN={name}", "-out", certificate, "-keyout", key),
            *("-CA", self.certificate, "-CAkey", self.folder / "authority.key"),
            *("-addext", f"subjectAltName={names}", "-addext", "basicConstraints=CA:FALSE"),
        )
        return certificate, key

    def expired(self) -> tuple[Path, Path]:
        """Return a certificate for 127.0.0.1 that was good for a day long ago, and its key."""
        certificate, key, asked = (self.folder / f"expired.{kind}" for kind in ("pem", "key", "csr"))
        index, settings = self.folder / "index", self.folder / "ca.cnf"
        index.touch()
        settings.write_text(
            f"[ca]\ndefault_ca=a\n[a]\ndatabase={index}\nnew_certs_dir={self.folder}\nrand_serial=yes\n"
            "default_md=sha256\npolicy=p\ncopy_extensions=copy\n[p]\ncommonName=supplied\n"
        )
        _openssl(
            *("req", "-new", *_CURVE[:-2], "-subj", "/CN=expired", "-out", asked, "-keyout", key),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        )
        _openssl(
            *("ca", "-batch", "-notext", "-config", settings, "-in", asked, "-out", certificate),
            *("-cert", self.certificate, "-keyfile", self.folder / "authority.key"),
            *("-startdate", "20200101000000Z", "-enddate", "20200102000000Z"),
        )
        return certificate, key


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Return a certificate for 127.0.0.1 that nobody vouches for, and its key."""
    certificate, key = folder / "alone.pem", folder / "alone.key"
    _openssl(
        *("req", "-x509", *_CURVE, "-subj", "/CN=alone", "-out", certificate, "-keyout", key),
        *("-addext", "subjectAltName=IP:127.0.0.1"),
    )
    return certificate, key


@dataclass
class FarServer:
    """What a server was asked. A stream's second event waits until `go_on` is set."""

    port: int = 0
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def far_server(certificate: tuple[Path, Path] | None, prefix: str) -> Iterator[FarServer]:
    """Serve the model `far-model` under `prefix`; without a certificate, in the clear."""
    far = FarServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({"object": "list", "data": [{"id": "far-model"}]}, "")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if body.get("stream"):
                self._stream()
            else:
                self._answer({"object": "text_completion", "choices": [{"text": "far"}]}, body["model"])

        def _answer(self, told: object, model: str) -> None:
            far.asked.append((self.path, model, self.headers["authorization"]))
            whole = json.dumps(told).encode()
            self.send_response(200 if self.path.startswith(f"{prefix}/v1/") else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole)

        def _stream(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self._event(b'{"choices":[{"index":0,"text":"one "}]}')
            far.go_on.wait(20)
            self._event(b'{"choices":[{"index":0,"text":"two","finish_reason":"stop"}]}')
            self._event(b"[DONE]")
            self.wfile.write(b"0\r\n\r\n")

        def _event(self, data: bytes) -> None:
            event = b"data: " + data + b"\n\n"
            self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Say nothing of clients that do not trust the certificate."""

    server = Server(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        # The handshake is the handler's: in the listener it would hold up everybody behind one client.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    far.port = server.server_address[1]
    serving = threading.Thread(target=functools.partial(server.serve_forever, 0.02), daemon=True)
    serving.start()
    try:
        yield far
    finally:
        far.go_on.set()
        server.shutdown()
        server.server_close()
        serving.join()


def _openssl(*arguments: str | Path) -> None:
    program = installed("openssl")
    assert program, "no openssl to make certificates with"
    ran = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
