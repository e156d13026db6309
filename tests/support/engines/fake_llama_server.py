"""A llama-server that misbehaves as its FAKE_ variables say. A real child process, standard library only.

FAKE_SAYS             what it prints first
FAKE_READY_AFTER_S    seconds until it is healthy
FAKE_READY_ONCE       a path: it is healthy once that file exists
FAKE_READS            `calls` or `mapping`: before that it reads the model's file so, in twentieths, as many
                      as the file FAKE_READS_UP_TO says
FAKE_TAKES_MIB        memory it takes on the card in the file FAKE_CARD; without room it says so and exits
FAKE_HOLDS_S          seconds for which that memory outlives it
FAKE_TOKENS           how many tokens it generates (8), one every FAKE_TOKEN_S; the last not before the file
                      FAKE_LAST_TOKEN_ONCE exists
FAKE_CRASH_AT_TOKEN   it kills itself in place of that token, 0 being the first; with FAKE_CRASH_ONCE, a path,
                      only the engine that creates that file
FAKE_STUCK_ON         a request with this text stops its queue: it answers no other request, nor /slots,
                      but still its health
FAKE_CRASH_ON         it crashes (SIGSEGV) when a request has this text
FAKE_GARBAGE          `words`, `json`, `shape` or `cut`: what it answers requests with
FAKE_IGNORE_TERM, FAKE_FORK, FAKE_ABORT, FAKE_EXIT, FAKE_CHATTER
"""

import json
import mmap
import os
import signal
import socket
import sys
import threading
import time

from fake_card import take
from fake_help import HELP

slots = [True, False]
stuck = threading.Event()
LOADED = "0.01 I sched_reserve:        CPU compute buffer size =     1.00 MiB"
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)


def answer(connection, ready):
    with connection:
        request = read_request(connection)
        path = request.split(b" ")[1].decode()
        given = b"\r\nauthorization: Bearer " + os.environ.get("LLAMA_API_KEY", "").encode() + b"\r\n"
        if path not in PUBLIC and "LLAMA_API_KEY" in os.environ and given.lower() not in request.lower():
            return connection.sendall(b"HTTP/1.1 401 X\r\n\r\n")
        if path.startswith("/v1/"):
            body = json.loads(request.partition(b"\r\n\r\n")[2])
            if os.environ.get("FAKE_CRASH_ON", "\0").encode() in request:
                signal.raise_signal(signal.SIGSEGV)
            if os.environ.get("FAKE_STUCK_ON", "\0").encode() in request:
                stuck.set()
            if stuck.is_set():
                wait_for_file("/nowhere")
            garbage = os.environ.get("FAKE_GARBAGE")
            slots[:] = [False, False]
            return answer_garbage(connection, garbage, body) if garbage else generate(connection, body)
        status, body = 200, {"argv": sys.argv[1:], "env": dict(os.environ)}
        if path == "/crash":
            signal.raise_signal(signal.SIGSEGV)
        elif path == "/health":
            status, body = (200 if ready() else 503), {}
        elif path == "/slots":
            if stuck.is_set():
                wait_for_file("/nowhere")
            body = [{"id": number, "is_processing": busy} for number, busy in enumerate(slots)]
        return connection.sendall(f"HTTP/1.1 {status} X\r\n\r\n{json.dumps(body)}".encode())


PUBLIC = ("/health", "/crash")


def read_request(connection):
    request = connection.recv(65536)
    head, _, body = request.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0].split(b":")[1]) - len(body) if lengths else 0
    while missing > 0 and (more := connection.recv(missing)):
        request += more
        missing -= len(more)
    return request


def generate(connection, body):
    crash_at = os.environ.get("FAKE_CRASH_AT_TOKEN")
    count = int(os.environ.get("FAKE_TOKENS", "8"))
    streams = body.get("stream", False)
    texts = []
    for number in range(count):
        if crash_at == str(number) and may_crash():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("FAKE_TOKEN_S", "0")))
        if number == count - 1:
            wait_for_file(os.environ.get("FAKE_LAST_TOKEN_ONCE"))
        texts.append(f"t{number} ")
        if streams:
            connection.sendall((STREAM_HEAD if number == 0 else b"") + chunk(event(texts[-1], None)))
    if streams:
        last = event("", "length") + b"data: [DONE]\n\n"
        return connection.sendall(chunk(last) + b"0\r\n\r\n")
    choice = {"index": 0, "text": "".join(texts), "finish_reason": "length"}
    return connection.sendall(JSON_HEAD + json.dumps({"choices": [choice]}).encode())


def may_crash():
    once = os.environ.get("FAKE_CRASH_ONCE")
    if once is None:
        return True
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def answer_garbage(connection, kind, body):
    streams = body.get("stream", False)
    if kind == "words":
        return connection.sendall(b"I am a teapot, short and stout\r\n\r\n")
    if kind == "cut":
        begun = chunk(event("t0 ", None)) if streams else b'b\r\n{"choices":\r\n'
        return connection.sendall(STREAM_HEAD + begun + b"ffff\r\n{")
    wrong = b'{"choices": [{"index"' if kind == "json" else b'{"choices": 5}'
    if streams:
        return connection.sendall(STREAM_HEAD + chunk(b"data: " + wrong + b"\n\n") + b"0\r\n\r\n")
    return connection.sendall(JSON_HEAD + wrong)


def event(text, finish_reason):
    choice = {"index": 0, "text": text, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"object": "text_completion", "choices": [choice]}).encode() + b"\n\n"


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


def main():
    if "--help" in sys.argv:
        return print(HELP + os.environ.get("FAKE_MORE_HELP", ""))
    if "--version" in sys.argv:
        return print(f"version: {os.environ.get('FAKE_VERSION', '9.9 (fake)')}")
    if "--list-devices" in sys.argv:
        return print("Available devices:\n" + os.environ.get("FAKE_DEVICES", "  (none)"))
    return serve()


def serve():
    print(os.environ.get("FAKE_SAYS", LOADED), file=sys.stderr, flush=True)
    if "FAKE_IGNORE_TERM" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "FAKE_FORK" in os.environ:
        fork_into(os.environ["FAKE_FORK"])
    if "FAKE_ABORT" in os.environ:
        os.abort()
    if "FAKE_EXIT" in os.environ:
        sys.exit(int(os.environ["FAKE_EXIT"]))
    if "FAKE_TAKES_MIB" in os.environ:
        take_memory()
    if "FAKE_CHATTER" in os.environ:
        threading.Thread(target=chatter, daemon=True).start()
    load_s = float(os.environ.get("FAKE_READY_AFTER_S", "0"))
    if "FAKE_READS" in os.environ:
        loading = threading.Thread(target=read_model, daemon=True)
        loading.start()

        def ready():
            return not loading.is_alive()
    else:
        ready_at = time.monotonic() + load_s
        once = os.environ.get("FAKE_READY_ONCE")

        def ready():
            return time.monotonic() >= ready_at and (once is None or os.path.exists(once))

    port = int(sys.argv[sys.argv.index("--port") + 1])
    listener = socket.create_server(("127.0.0.1", port), reuse_port=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection, ready), daemon=True).start()


def take_memory():
    holds_s = float(os.environ.get("FAKE_HOLDS_S", "0"))
    refused = take(os.environ["FAKE_CARD"], int(os.environ["FAKE_TAKES_MIB"]), holds_s=holds_s)
    if refused:
        print(refused, file=sys.stderr)
        print("0.01 E llama_model_load: error loading model: no CUDA0 buffer", file=sys.stderr)
        sys.exit(1)


def wait_for_file(path):
    while path is not None and not os.path.exists(path):
        time.sleep(0.01)


def read_model(steps=20):
    path = next(sys.argv[i + 1] for i, word in enumerate(sys.argv) if word in ("-m", "--model"))
    length = -(-os.path.getsize(path) // steps)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for step in range(steps):
            while step >= steps_allowed(os.environ["FAKE_READS_UP_TO"]):
                time.sleep(0.01)
            if os.environ["FAKE_READS"] == "calls":
                file.read(length)
            else:
                sum(mapped[step * length : (step + 1) * length : mmap.PAGESIZE])


def steps_allowed(path):
    with open(path) as file:
        return int(file.read() or 0)


def fork_into(path):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open(path + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.replace(path + ".part", path)
        while True:
            signal.pause()


def chatter():
    while True:
        print("x" * 4000, file=sys.stderr, flush=True)
        time.sleep(0.002)


main()
