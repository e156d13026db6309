"""An Ollama daemon as `engines.ollama` speaks to it, with two models. Standard library only.

`stand_in_ollama.py PORT`. With FAKE_CARD, what it loads takes that memory there, in its own process's name.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "engines"))
from fake_card import opened

MIB = 1 << 20
SIZES = {"tiny:latest": 300 * MIB, "embedder:latest": 100 * MIB, "huge:70b": 40000 * MIB}
loaded = {}
lock = threading.Lock()
calls = []


def full(tag):
    return tag if ":" in tag else f"{tag}:latest"


def count():
    """Show on the card what is loaded."""
    if "FAKE_CARD" not in os.environ:
        return
    held = sum(SIZES[tag] for tag in loaded) // MIB
    with opened(os.environ["FAKE_CARD"]) as machine:
        card = machine["gpus"][0]
        others = [process for process in card["processes"] if process["pid"] != os.getpid()]
        mine = [{"pid": os.getpid(), "name": "ollama", "used_mib": held}] if held else []
        card["processes"] = others + mine
        card["used_mib"] = sum(process["used_mib"] for process in card["processes"])


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_GET(self):
        calls.append(self.path)
        details = {"family": "llama", "quantization_level": "Q4_K_M"}
        if self.path == "/api/version":
            return self.tell({"version": "0.12.6"})
        if self.path == "/api/tags":
            models = [
                {"name": tag, "model": tag, "size": size, "digest": tag, "details": details_of(tag, details)}
                for tag, size in SIZES.items()
            ]
            return self.tell({"models": models})
        if self.path == "/api/ps":
            with lock:
                models = [
                    {
                        "name": tag,
                        "model": tag,
                        "size": SIZES[tag],
                        "size_vram": SIZES[tag],
                        "expires_at": until,
                    }
                    for tag, until in loaded.items()
                ]
            return self.tell({"models": models})
        if self.path == "/calls":
            return self.tell({"calls": calls})
        return self.tell({"error": "not found"}, 404)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        tag = full(asked.get("model", ""))
        calls.append([self.path, asked])
        if tag not in SIZES:
            return self.tell({"error": f"model '{tag}' not found"}, 404)
        if self.path == "/api/show":
            info = {
                "general.architecture": "llama",
                "llama.block_count": 4,
                "llama.embedding_length": 256,
                "llama.attention.head_count": 4,
                "llama.attention.head_count_kv": 2,
            }
            return self.tell({"model_info": info, "parameters": "num_ctx 2048"})
        if self.path == "/api/generate" and tag.startswith("embedder"):
            return self.tell({"error": f'"{tag}" does not support generate'}, 400)
        if self.path in ("/api/generate", "/api/embed"):
            return self.keep(tag, asked.get("keep_alive", 300))
        if self.path.startswith("/v1/"):
            return self.serve(tag, asked)
        return self.tell({"error": "not found"}, 404)

    def keep(self, tag, keep_alive):
        if tag == "huge:70b" and keep_alive != 0:
            return self.tell({"error": "model requires more system memory (40 GiB) than is available"}, 500)
        with lock:
            if keep_alive == 0:
                loaded.pop(tag, None)
            else:
                loaded[tag] = instant(keep_alive)
            count()
        return self.tell({"model": tag, "done": True})

    def serve(self, tag, asked):
        with lock:
            # A request without keep_alive has the model kept for the daemon's default from now on.
            loaded[tag] = instant(300)
            count()
        texts = [f"o{number} " for number in range(min(8, asked.get("max_tokens") or 8))]
        if not asked.get("stream"):
            choice = {"index": 0, "text": "".join(texts), "message": {"content": "".join(texts)}}
            return self.tell({"model": asked["model"], "choices": [{**choice, "finish_reason": "stop"}]})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for text in texts:
            time.sleep(0.005)
            choice = {"index": 0, "text": text, "delta": {"content": text}}
            self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")
        return None

    def tell(self, told, status=200):
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def details_of(tag, details):
    return {**details, "family": "bert"} if tag.startswith("embedder") else details


def instant(keep_alive):
    seconds = 10**9 if keep_alive == -1 else keep_alive
    return time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z", time.gmtime(time.time() + seconds))


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
