"""vLLM's server as `engines.vllm` speaks to it: health, completions, metrics, sleep. Standard library only.

It answers as vLLM 0.32 does, which `tests/engines/vllm/test_real_vllm.py` starts, and takes no other options.

STAND_IN_SAYS            what it prints first; STAND_IN_EXIT then ends it with that status
STAND_IN_TAKES_MIB       memory it takes on the card in the file FAKE_CARD, in a child process as vLLM does;
                         without room it says so as vLLM does and exits
STAND_IN_ASLEEP_MIB      what it keeps of that while it sleeps (64)
STAND_IN_NO_SLEEP        it answers 500 to /sleep
STAND_IN_BAD_WAKE        `refuses`, `silent` or `gibberish`: how it is after a wake
STAND_IN_READY_AFTER_S, STAND_IN_TOKENS, STAND_IN_TOKEN_S
"""

import json
import os
import signal
import socket
import sys
import threading
import time

from fake_card import opened, take

state = {"asleep": False, "woken": False, "busy": 0, "calls": []}
key = os.environ.get("VLLM_API_KEY")
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: "
OPTIONS = {
    *(
        "--served-model-name",
        "--host",
        "--port",
        "--max-model-len",
        "--max-num-seqs",
        "--runner",
        "--convert",
    ),
    *(
        "--max-num-batched-tokens",
        "--tensor-parallel-size",
        "--middleware",
        "--gpu-memory-utilization",
        "--enable-sleep-mode",
    ),
    *("--kv-cache-memory-bytes", "--kv-cache-dtype", "--enforce-eager", "--seed"),
}


def option(name, default=None):
    words = sys.argv
    return words[words.index(name) + 1] if name in words else default


def hold(mib):
    """Set what this process holds of the card."""
    with opened(os.environ["FAKE_CARD"]) as machine:
        card = machine["gpus"][0]
        for process in card["processes"]:
            if process["pid"] == worker_pid():
                card["used_mib"] = int(card["used_mib"]) + mib - process["used_mib"]
                process["used_mib"] = mib


def worker_pid():
    return state["worker"]


def answer(connection):
    with connection:
        request = connection.recv(65536)
        target = request.split(b" ", 2)[1]
        head, _, body = request.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        missing = int(lengths[0].split(b":")[1]) - len(body) if lengths else 0
        while missing > 0 and (more := connection.recv(missing)):
            body += more
            missing -= len(more)
        path, _, query = target.decode().partition("?")
        state["calls"].append(target.decode())
        # As the middleware does, which answers for all routes.
        if (
            key
            and path != "/told"
            and f"\r\nauthorization: bearer {key}\r\n".lower() not in head.decode().lower() + "\r\n"
        ):
            return connection.sendall(b"HTTP/1.1 401 Unauthorized\r\n\r\n")
        if path == "/health":
            ready = time.monotonic() >= READY_AT
            return connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" if ready else b"HTTP/1.1 503 No\r\n\r\n")
        if path == "/forbidden":
            return connection.sendall(b"HTTP/1.1 401 Unauthorized\r\n\r\n")
        if path == "/metrics":
            told = f'{{engine="0",model_name="{option("--served-model-name")}"'
            text = (
                "# TYPE vllm:num_requests_running gauge\n"
                f"vllm:num_requests_running{told}}} {state['busy']}.0\n"
                f"vllm:num_requests_waiting{told}}} 0.0\n"
                f'vllm:num_requests_waiting_by_reason{told},reason="capacity"}} 0.0\n'
            )
            return connection.sendall(HEAD + b"text/plain\r\n\r\n" + text.encode())
        if path == "/crash":
            signal.raise_signal(signal.SIGSEGV)
        if path in ("/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/reset_prefix_cache", "/told"):
            return control(connection, path, query)
        if b"\r\ncontent-type: application/json" not in head.lower():
            message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            return error(connection, 400, "Bad Request", message, None)
        return serve(connection, path, json.loads(body))


def control(connection, path, query):
    # vLLM has these only in its development mode; there it also has them where it cannot sleep.
    if path != "/told" and not os.environ.get("VLLM_SERVER_DEV_MODE"):
        return no_route(connection)
    told = {}
    if path == "/sleep":
        if os.environ.get("STAND_IN_NO_SLEEP"):
            return connection.sendall(b"HTTP/1.1 500 Oops\r\n\r\n")
        state["asleep"] = True
        told = {"status": "sleeping", "level": int(query.partition("=")[2])}
        if "FAKE_CARD" in os.environ and "--enable-sleep-mode" in sys.argv:
            hold(int(os.environ.get("STAND_IN_ASLEEP_MIB", "64")))
    elif path == "/wake_up":
        if os.environ.get("STAND_IN_BAD_WAKE") == "refuses":
            return connection.sendall(b"HTTP/1.1 500 Oops\r\n\r\n")
        if "FAKE_CARD" in os.environ:
            hold(int(os.environ["STAND_IN_TAKES_MIB"]))
        state.update(asleep=False, woken=True)
        told = {"status": "awake", "tags": None}
    elif path == "/collective_rpc":
        told = {"results": [None]}
    elif path == "/is_sleeping":
        told = {"is_sleeping": state["asleep"]}
    elif path == "/told":
        told = {"argv": sys.argv[1:], "env": dict(os.environ), "calls": state["calls"]}
    return connection.sendall(HEAD + b"application/json\r\n\r\n" + json.dumps(told).encode())


def serve(connection, path, asked):
    name = option("--served-model-name")
    if asked.get("model") != name:
        message = f"The model `{asked.get('model')}` does not exist. Valid aliases: {name}."
        return error(connection, 404, "NotFoundError", message, "model")
    if (path == "/v1/embeddings") is not (option("--runner") == "pooling"):
        return no_route(connection)
    longest = int(option("--max-model-len", "8192"))
    if (asked.get("max_tokens") or 0) > longest:
        message = f"max_tokens={asked['max_tokens']} cannot be greater than max_model_len={longest}."
        return error(connection, 400, "BadRequestError", message, "max_tokens")
    state["busy"] += 1
    try:
        return generate(connection, path, asked)
    finally:
        state["busy"] -= 1


def error(connection, status, kind, message, param):
    told = {"error": {"message": message, "type": kind, "param": param, "code": status}}
    head = f"HTTP/1.1 {status} {kind}\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n"
    connection.sendall(head.encode() + json.dumps(told).encode())


def no_route(connection):
    connection.sendall(b'HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n{"detail":"Not Found"}')


def generate(connection, path, asked):
    bad = os.environ.get("STAND_IN_BAD_WAKE") if state["woken"] else None
    if bad == "silent":
        return None
    if path == "/v1/embeddings":
        data = [{"index": 0, "embedding": [0.25, 0.5]}]
        return connection.sendall(HEAD + b"application/json\r\n\r\n" + json.dumps({"data": data}).encode())
    count = min(int(os.environ.get("STAND_IN_TOKENS", "8")), asked.get("max_tokens") or 1 << 20)
    texts = ["!!" if bad == "gibberish" else f"t{number} " for number in range(count)]
    streams, chat = asked.get("stream"), path == "/v1/chat/completions"
    if streams:
        connection.sendall(HEAD + b"text/event-stream\r\n\r\n")
    for text in texts:
        time.sleep(float(os.environ.get("STAND_IN_TOKEN_S", "0")))
        if streams:
            connection.sendall(event({"delta": {"content": text}} if chat else {"text": text}))
    if streams:
        return connection.sendall(b"data: [DONE]\n\n")
    whole = "".join(texts)
    choice = {"message": {"role": "assistant", "content": whole}} if chat else {"text": whole}
    choices = [{"index": 0, "finish_reason": "length", **choice}]
    usage = {"prompt_tokens": 4, "completion_tokens": count, "total_tokens": 4 + count}
    told = {"id": "cmpl-1", "model": asked["model"], "choices": choices, "usage": usage}
    return connection.sendall(HEAD + b"application/json\r\n\r\n" + json.dumps(told).encode())


def event(choice):
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


def take_memory():
    """Have a worker process take memory, which is of this process's group and not this process."""
    gives, takes = os.pipe()
    pid = os.fork()
    if pid == 0:
        refused = take(
            os.environ["FAKE_CARD"], int(os.environ["STAND_IN_TAKES_MIB"]), name="VLLM::EngineCore"
        )
        os.write(takes, (refused or "ok").encode())
        while not refused:
            signal.pause()
        os._exit(1)
    state["worker"] = pid
    if os.read(gives, 4096) != b"ok":
        print(
            "ERROR torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", file=sys.stderr
        )
        sys.exit(1)


def main():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    said = "(APIServer pid=1) INFO 11-21 12:00:00 [api_utils.py:347] version 0.32.0"
    print(os.environ.get("STAND_IN_SAYS", said), file=sys.stderr, flush=True)
    unknown = [word for word in sys.argv if word.startswith("--") and word not in OPTIONS]
    if unknown:
        print(f"vllm: error: unrecognized arguments: {' '.join(unknown)}", file=sys.stderr)
        sys.exit(2)
    if "STAND_IN_EXIT" in os.environ:
        sys.exit(int(os.environ["STAND_IN_EXIT"]))
    if "STAND_IN_TAKES_MIB" in os.environ:
        take_memory()
    listener = socket.create_server((option("--host"), int(option("--port"))), reuse_port=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


READY_AT = time.monotonic() + float(os.environ.get("STAND_IN_READY_AFTER_S", "0"))
main()
