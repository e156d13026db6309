"""A server of OpenAI's audio and image API: it speaks tones, measures recordings and paints squares.

Run as a program it takes its port, and answers `/health` once it serves. It knows its model as "own".
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
import wave
from email.message import Message
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.models.vision import png

RATE = 8000


def tone(text: str) -> bytes:
    """A recording of a hundredth of a second for each letter."""
    kept = io.BytesIO()
    with wave.open(kept, "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes(bytes(2 * RATE // 100) * len(text))
    return kept.getvalue()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/page"):
            self._send(b"<h1>mine</h1>", "text/html")
        elif self.path == "/moved":
            self._send(b"", "text/plain", 302, ("Location", "/page?from=moved"))
        elif self.path.startswith("/health"):
            self._send(b"{}")
        else:
            self._send(b"no such page", "text/plain", 404)

    def do_PUT(self) -> None:
        self._send(json.dumps({"put": len(self._body()), "path": self.path}).encode())

    def do_POST(self) -> None:
        body = self._body()
        kind = self.headers.get("Content-Type", "")
        fields = form(kind, body) if kind.startswith("multipart/") else json.loads(body)
        if fields.get("model") not in ("own", b"own"):
            error = {"message": f"unknown model {fields.get('model')!r}", "type": "invalid_request_error"}
            self._send(json.dumps({"error": error}).encode(), status=400)
        elif self.path == "/v1/audio/speech":
            self._send(tone(fields["input"]), "audio/wav")
        elif self.path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
            self._hear(fields)
        elif self.path == "/v1/images/generations":
            self._paint(png(255, 0, 0))
        elif self.path in ("/v1/images/edits", "/v1/images/variations"):
            self._paint(fields["image"])
        elif self.path == "/v1/moderations":
            result = {"flagged": "bad" in fields["input"], "categories": {}, "category_scores": {}}
            self._send(json.dumps({"id": "1", "model": "own", "results": [result]}).encode())
        else:
            self._send(b"no such page", "text/plain", 404)

    def _hear(self, fields: dict[str, bytes]) -> None:
        sound = fields["file"]
        if sound.startswith(b"RIFF"):
            with wave.open(io.BytesIO(sound)) as recording:
                text = f"{100 * recording.getnframes() // RATE} letters"
        else:
            text = hashlib.sha256(sound).hexdigest()
        if fields.get("stream") == b"true":
            events = [
                {"type": "transcript.text.delta", "delta": text},
                {"type": "transcript.text.done", "text": text},
            ]
            self._send(
                b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events),
                "text/event-stream",
            )
        else:
            self._send(json.dumps({"text": text}).encode())

    def _paint(self, picture: bytes) -> None:
        shown = [{"b64_json": base64.b64encode(picture).decode()}]
        self._send(json.dumps({"created": 1, "data": shown}).encode())

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(
        self, body: bytes, kind: str = "application/json", status: int = 200, *headers: tuple[str, str]
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def form(kind: str, body: bytes) -> dict[str, bytes]:
    """Read form data with Python's own parser of MIME."""
    whole: Message = BytesParser().parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    fields: dict[str, bytes] = {}
    for part in whole.get_payload():
        assert isinstance(part, Message)
        value = part.get_payload(decode=True)
        assert isinstance(value, bytes)
        fields[str(part.get_param("name", header="content-disposition"))] = value
    return fields


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
