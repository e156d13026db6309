"""An engine that listens some time after its start.

`python bench/late_engine.py PORT SECONDS FILE [TOKENS/S]` appends to the file when it listens, on the
machine's monotonic clock. With a rate it takes as long for an answer as its tokens take. Standard library
only.
"""

import json
import socket
import sys
import threading
import time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"


def main(port, seconds, file, tokens_per_s):
    time.sleep(seconds)
    with socket.create_server(("127.0.0.1", port)) as server, open(file, "a", encoding="utf-8") as ready:
        ready.write(f"{time.monotonic()}\n")
        ready.flush()
        while True:
            connection, _ = server.accept()
            threading.Thread(target=answer, args=(connection, tokens_per_s), daemon=True).start()


def answer(connection, tokens_per_s):
    with connection:
        request = connection.recv(65536)
        head, _, body = request.partition(b"\r\n\r\n")
        missing = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        while missing and len(body) < int(missing[0].split(b":")[1]):
            body += connection.recv(65536)
        tokens = json.loads(body)["max_tokens"] if body else 0
        if tokens_per_s:
            time.sleep(tokens / tokens_per_s)
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        choice = {"index": 0, "text": "done", "finish_reason": "stop"}
        text = json.dumps({"choices": [choice], "usage": usage}).encode()
        if request:
            connection.sendall(HEAD % len(text) + text)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], float((*sys.argv, "0")[4]))
