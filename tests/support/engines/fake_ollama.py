"""An Ollama daemon as `engines.ollama` speaks to it, with three models. Standard library only.

`fake_ollama.py PORT`. It answers as Ollama 0.17.4 does, to which `test_real_ollama` holds it. With
FAKE_CARD, what it loads takes that memory there, in its own process's name.
"""

import hashlib
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fake_card import opened

MIB = 1 << 20
DEFAULT_S = 300
SIZES = {"tiny:latest": 300 * MIB, "embedder:latest": 100 * MIB, "huge:70b": 40000 * MIB}
weights = {tag: hashlib.sha256(tag.encode()).hexdigest() for tag in SIZES}
loaded = {}
"""By the weights: the tag under which they were loaded, how long they stay unused, and until when."""
lock = threading.Lock()
calls = []


def full(tag):
    return tag if ":" in tag else f"{tag}:latest"


def size_of(tag):
    return next(SIZES[each] for each in SIZES if weights[each] == weights[tag])


def is_embedder(tag):
    return size_of(tag) == SIZES["embedder:latest"]


def count():
    """Show on the card what is loaded."""
    if "FAKE_CARD" not in os.environ:
        return
    held = sum(size_of(tag) for tag, _, _ in loaded.values()) // MIB
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
        if self.path == "/api/version":
            return self.tell({"version": os.environ.get("FAKE_VERSION", "0.17.4")})
        if self.path == "/api/tags":
            models = [
                {**self.named(tag), "modified_at": written(time.time()), "size": size_of(tag)}
                for tag in weights
            ]
            return self.tell({"models": models})
        if self.path == "/api/ps":
            with lock:
                models = [
                    {
                        **self.named(tag),
                        "size": size_of(tag),
                        "expires_at": written(until),
                        "size_vram": size_of(tag),
                        "context_length": 2048,
                    }
                    for tag, _, until in loaded.values()
                ]
            return self.tell({"models": models})
        if self.path == "/calls":
            return self.tell({"calls": calls})
        return self.say("404 page not found", 404)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        calls.append([self.path, asked])
        if self.path == "/api/copy":
            weights[full(asked["destination"])] = weights[full(asked["source"])]
            return self.say("", 200)
        name = asked.get("model", "")
        tag = full(name)
        if tag not in weights:
            return self.refuse(f"model '{name}' not found", 404)
        if self.path == "/api/show":
            return self.tell(shown(tag))
        if self.path == "/api/generate" and is_embedder(tag) and asked.get("keep_alive") != 0:
            return self.refuse(f'"{name}" does not support generate', 400)
        if self.path in ("/api/generate", "/api/embed"):
            return self.keep(name, asked.get("keep_alive"))
        if self.path.startswith("/v1/"):
            return self.serve(tag, asked)
        return self.say("404 page not found", 404)

    def named(self, tag):
        return {"name": tag, "model": tag, "digest": weights[tag], "details": details(tag)}

    def keep(self, name, keep_alive):
        tag = full(name)
        if tag == "huge:70b" and keep_alive != 0:
            message = "model requires more system memory (40.0 GiB) than is available (8.0 GiB)"
            return self.refuse(message, 500)
        self.use(tag, keep_alive)
        told = {"model": name, "created_at": written(time.time())}
        if self.path == "/api/embed":
            return self.tell({"model": name, "embeddings": []})
        reason = "unload" if keep_alive == 0 else "load"
        return self.tell({**told, "response": "", "done": True, "done_reason": reason})

    def use(self, tag, keep_alive):
        """Load a model. Without a keep_alive it stays for as long as was last said, else for the default."""
        with lock:
            as_loaded, stays_s, _ = loaded.get(weights[tag], (tag, DEFAULT_S, 0))
            if keep_alive is not None:
                stays_s = 10**9 if keep_alive < 0 else keep_alive
            if stays_s == 0:
                loaded.pop(weights[tag], None)
            else:
                loaded[weights[tag]] = (as_loaded, stays_s, time.time() + stays_s)
            count()

    def serve(self, tag, asked):
        self.use(tag, None)
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

    def refuse(self, message, status):
        if self.path.startswith("/v1/"):
            message = {"message": message, "type": "api_error", "param": None, "code": None}
        self.tell({"error": message}, status)

    def tell(self, told, status=200):
        self.say(json.dumps(told), status, "application/json; charset=utf-8")

    def say(self, text, status, content_type="text/plain"):
        body = text.encode()
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def details(tag):
    family = "bert" if is_embedder(tag) else "llama"
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": "2.17M",
        "quantization_level": "Q4_K_M",
    }


def shown(tag):
    if is_embedder(tag):
        info = {"general.architecture": "bert", "bert.block_count": 2, "bert.context_length": 512}
        parameters = {}
    else:
        info = {
            "general.architecture": "llama",
            "llama.block_count": 4,
            "llama.context_length": 8192,
            "llama.embedding_length": 256,
            "llama.attention.head_count": 4,
            "llama.attention.head_count_kv": 2,
        }
        parameters = {"parameters": f"{'num_ctx':<30} 2048"}
    file = f"/models/blobs/sha256-{weights[tag]}"
    return {
        "modelfile": f'# Modelfile generated by "ollama show"\n# FROM {tag}\n\nFROM {file}\n',
        **parameters,
        "template": "{{ .Prompt }}",
        "details": details(tag),
        "model_info": info,
        "capabilities": ["embedding"] if is_embedder(tag) else ["completion"],
        "modified_at": written(time.time()),
    }


def written(instant):
    """Return an instant with the nine digits of a second that Go writes."""
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(instant))
    return f"{text}.{int(instant % 1 * 10**9):09d}Z"


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
