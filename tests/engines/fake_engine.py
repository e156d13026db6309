"""A llama-server that misbehaves as its FAKE_ variables say. A real child process, standard library only."""

import json
import os
import signal
import socket
import sys
import threading
import time

LOADED = "0.01 I sched_reserve:        CPU compute buffer size =     1.00 MiB"

HELP = """\
-m,    --model FNAME                    model path to load
-a,    --alias STRING                   set alias
--host HOST                             address
--port PORT                             port
-c,    --ctx-size N                     context
-np,   --parallel N                     slots
-b,    --batch-size N                   batch
-ub,   --ubatch-size N                  micro-batch
-t,    --threads N                      threads
--threads-http N                        threads for HTTP
-ctk,  --cache-type-k TYPE              K
-ctv,  --cache-type-v TYPE              V
-fa,   --flash-attn [on|off|auto]       flash attention
-ngl,  --gpu-layers, --n-gpu-layers N   layers on GPUs
-sm,   --split-mode {none,layer,row}    split mode
-ts,   --tensor-split N0,N1,N2,...      split
-kvu,  --kv-unified, -no-kvu, --no-kv-unified
                                        one KV stream
"""


def answer(connection, ready):
    with connection:
        path = connection.recv(65536).split(b" ")[1].decode()
        status, body = 200, {"argv": sys.argv[1:], "env": dict(os.environ)}
        if path == "/crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif path == "/health":
            status, body = (200 if ready() else 503), {}
        elif path == "/slots":
            body = [{"id": 0, "is_processing": True}, {"id": 1, "is_processing": False}]
        connection.sendall(f"HTTP/1.1 {status} X\r\n\r\n{json.dumps(body)}".encode())


def main():
    if "--help" in sys.argv:
        return print(HELP + os.environ.get("FAKE_MORE_HELP", ""))
    if "--version" in sys.argv:
        return print("version: 9.9 (fake)")
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
    if "FAKE_CHATTER" in os.environ:
        threading.Thread(target=chatter, daemon=True).start()
    ready_at = time.monotonic() + float(os.environ.get("FAKE_READY_AFTER_S", "0"))
    port = int(sys.argv[sys.argv.index("--port") + 1])
    listener = socket.create_server(("127.0.0.1", port), reuse_port=True)
    while True:
        connection, _ = listener.accept()
        answer(connection, lambda: time.monotonic() >= ready_at)


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
