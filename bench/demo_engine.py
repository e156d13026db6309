"""A llama-server for pictures: it takes memory on described cards and tells a story, a word at a time.

DEMO_CARDS     the file of the cards that it takes memory on
DEMO_TAKES     where and how much: `0:5200,1:4100`, index of the card and MiB
DEMO_LOAD_S    seconds until it is healthy
DEMO_WORD_S    seconds between two words
DEMO_SAYS      what it writes to its log first

Standard library only, as what runs it has no packages.
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support" / "engines"))
from fake_card import opened
from fake_help import HELP

STORY = (
    "Three models share two cards here. The largest has a card to itself while it is busy; the others move "
    "over, and come back when somebody asks for them. What does not fit waits, and is told how long."
)
BEGAN = time.monotonic()


class Answers(BaseHTTPRequestHandler):
    """Health, slots, and completions as a stream of server-sent events or in one piece."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/health":
            ready = time.monotonic() - BEGAN >= float(os.environ.get("DEMO_LOAD_S", "0"))
            return self._send(200 if ready else 503, {})
        return self._send(200, [{"id": 0, "is_processing": False}])

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        words = list(islice(cycle(STORY.split()), min(asked.get("max_tokens") or 64, 64)))
        began = time.monotonic()
        if not asked.get("stream"):
            time.sleep(self._pause_s * len(words))
            text = " ".join(words)
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return self._send(200, {"choices": [choice], **told(len(words), began)})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for word in words:
            time.sleep(self._pause_s)
            self._event({"choices": [{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}]})
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], **told(len(words), began)})
        self._chunk(b"data: [DONE]\n\n")
        return self._chunk(b"")

    @property
    def _pause_s(self):
        return float(os.environ.get("DEMO_WORD_S", "0.02"))

    def _event(self, data):
        self._chunk(b"data: " + compact(data) + b"\n\n")

    def _chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _send(self, status, body):
        data = compact(body)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, text, *values):
        print(f"{time.monotonic() - BEGAN:.2f} I srv  {text % values}", file=sys.stderr, flush=True)


def compact(data):
    """Write JSON as llama.cpp does, without blanks: the gateway reads the counts out of the bytes."""
    return json.dumps(data, separators=(",", ":")).encode()


def told(words, began):
    took_ms = (time.monotonic() - began) * 1000
    usage = {"prompt_tokens": 24, "completion_tokens": words, "total_tokens": 24 + words}
    timings = {"prompt_n": 24, "prompt_ms": 9.0, "predicted_n": words, "predicted_ms": max(took_ms, 1.0)}
    return {"usage": usage, "timings": timings}


def hold(sign):
    """Take the memory (1) or give it back (-1)."""
    with opened(os.environ["DEMO_CARDS"]) as machine:
        for index, _, mib in (each.partition(":") for each in os.environ["DEMO_TAKES"].split(",")):
            card, count = machine["gpus"][int(index)], int(mib)
            others = [each for each in card["processes"] if each["pid"] != os.getpid()]
            own = [{"pid": os.getpid(), "name": "llama-server", "used_mib": count}] if sign > 0 else []
            card["processes"], card["used_mib"] = others + own, card["used_mib"] + sign * count


def leave(*_):
    hold(-1)
    os._exit(0)


def main():
    answers = {
        "--help": HELP,
        "--version": "version: 7210 (demo)",
        "--list-devices": "Available devices:\n  (none)",
    }
    for word in sys.argv[1:]:
        if word in answers:
            print(answers[word])
            return
    print(os.environ.get("DEMO_SAYS", ""), file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, leave)
    hold(1)
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answers)
    server.serve_forever()


if __name__ == "__main__":
    main()
