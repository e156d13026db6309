"""An engine that listens some time after its start: `python bench/late_engine.py PORT SECONDS FILE`.

It appends to the file when it does, on the machine's monotonic clock. Standard library only.
"""

import socket
import sys
import time

ANSWER = b'{"choices": [{"index": 0, "text": "done", "finish_reason": "stop"}]}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"


def main(port: int, seconds: float, file: str) -> None:
    time.sleep(seconds)
    with socket.create_server(("127.0.0.1", port)) as server, open(file, "a", encoding="utf-8") as ready:
        ready.write(f"{time.monotonic()}\n")
        ready.flush()
        while True:
            connection, _ = server.accept()
            with connection:
                if connection.recv(65536):
                    connection.sendall(HEAD % len(ANSWER) + ANSWER)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
