"""A stand-in for `nvidia-cuda-mps-control`, standard library only: its command line, its control commands.

`-f` and `-d` start a daemon, in the foreground or not; without either, commands are read from standard input.
A client is any process whose environment names the daemon's pipe directory, as for the real one. Variables:
STAND_IN_MPS_HANGS_ON_QUIT, STAND_IN_MPS_FAILS (a message to end with), STAND_IN_MPS_SILENT (never listens).
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PIPE = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
LOG = Path(os.environ.get("CUDA_MPS_LOG_DIRECTORY", "/var/log/nvidia-mps"))
PID_FILE = PIPE / "nvidia-cuda-mps-control.pid"
SOCKET = PIPE / "control"


def main():
    words = sys.argv[1:]
    if words == ["--server"]:
        serve_clients()
    elif words == ["-f"]:
        daemon()
    elif words == ["-d"]:
        in_background()
    elif not words:
        sys.exit(command_line())
    else:
        sys.exit(f"unknown option {words[0]}")


def command_line():
    """Send each line of standard input to the daemon, and print what it answers."""
    for line in sys.stdin:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(SOCKET))
                connection.sendall(line.encode())
                connection.shutdown(socket.SHUT_WR)
                answer = read_all(connection)
        except OSError:
            print("Cannot find MPS control daemon process")
            return 1
        sys.stdout.write(answer.decode())
    return 0


def read_all(connection):
    return b"".join(iter(lambda: connection.recv(65536), b""))


def in_background():
    if os.fork():
        deadline = time.monotonic() + 60
        while not SOCKET.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os._exit(0 if SOCKET.exists() else 1)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    daemon()


def daemon():
    if "STAND_IN_MPS_FAILS" in os.environ:
        sys.exit(os.environ["STAND_IN_MPS_FAILS"])
    if not (PIPE.is_dir() and LOG.is_dir()):
        sys.exit("Failed to create the pipe or log directory")
    if listening():
        sys.exit("An instance of this daemon is already running")
    if SOCKET.exists() or PID_FILE.exists():
        sys.exit(f"Stale files of an earlier daemon are in {PIPE}")
    while "STAND_IN_MPS_SILENT" in os.environ:
        time.sleep(0.05)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(PIPE / "control.new"))
    listener.listen(64)
    PID_FILE.write_text(f"{os.getpid()}\n")
    log(f"Start; cards {os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}")
    os.replace(PIPE / "control.new", SOCKET)
    Daemon(listener).run()


def listening():
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(SOCKET))
        except OSError:
            return False
    return True


def log(text, name="control.log"):
    with (LOG / name).open("a") as file:
        file.write(f"[{time.strftime('%F %T')}] {text}\n")


class Daemon:
    def __init__(self, listener):
        self.listener = listener
        self.server = None

    def run(self):
        self.listener.settimeout(0.02)
        while True:
            self.serve_who_came()
            try:
                connection, _ = self.listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(1)
                words = read_all(connection).decode().split()
                if words:
                    connection.sendall(self.obey(words).encode())

    def serve_who_came(self):
        """Start a server for the first client, as the real daemon does."""
        if self.server is None and clients():
            self.server = subprocess.Popen([sys.executable, __file__, "--server"])
            log(f"Starting new server {self.server.pid} for user {os.getuid()}")
        if self.server is not None and self.server.poll() is not None:
            self.server = None

    def obey(self, words):
        name, arguments = words[0], words[1:]
        if name == "get_server_list":
            return f"{self.server.pid}\n" if self.server else ""
        if name == "get_server_status":
            return "ACTIVE\n"
        if name == "get_client_list":
            return "".join(f"{pid}\n" for pid in clients())
        if name == "quit":
            self.quit(float(arguments[1]) if arguments[:1] == ["-t"] else None)
        return f"Unrecognized command: {name}\n"

    def quit(self, within_s):
        while "STAND_IN_MPS_HANGS_ON_QUIT" in os.environ:
            time.sleep(0.05)
        deadline = None if within_s is None else time.monotonic() + within_s
        while clients() and (deadline is None or time.monotonic() < deadline):
            time.sleep(0.02)
        if self.server is not None:
            self.server.kill()
            self.server.wait()
        for path in (SOCKET, PID_FILE):
            path.unlink(missing_ok=True)
        log("Exit")
        os._exit(0)


def clients():
    wanted = b"CUDA_MPS_PIPE_DIRECTORY=" + os.fsencode(PIPE)
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes()
                # An engine's guard has its environment, and computes nothing.
                if b"nvidia-cuda-mps-control" not in command and b"guard.py" not in command and command:
                    found.append(int(folder.name))
        except OSError:
            continue
    return sorted(found)


def serve_clients():
    log("Server has started", "server.log")
    while True:
        signal.pause()


main()
