"""`cotenant lease`: runs a command in GPU memory that a daemon holds for it."""

import argparse
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar
from urllib.parse import quote

from cotenant.cli.client import Daemon, add_daemon_options
from cotenant.domain.errors import BadQuantity, CotenantError
from cotenant.domain.units import format_bytes, format_duration, parse_bytes, parse_duration

_GRACE_S: Final = 30.0
_NOT_FOUND, _NOT_EXECUTABLE, _BY_SIGNAL = 127, 126, 128
_LEASES: Final = "/api/leases"
T = TypeVar("T")


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("memory", metavar="MEMORY", help="how much memory of one GPU, such as 12GiB")
    parser.add_argument("command", metavar="COMMAND", nargs="+", help="after --, what to run")
    parser.add_argument("--gpu", metavar="GPU", help="its index or UUID (default: where there is room)")
    parser.add_argument(
        "--for", dest="lasts", metavar="TIME", help="end it after this time, such as 2h (default: never)"
    )
    parser.add_argument(
        "--wait", metavar="TIME", default="10m", help="how long to wait for the memory (default: 10m)"
    )
    add_daemon_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command once the memory is there, and return its status.

    The lease ends with the command; if it ends before, at its time or by an order, the command is stopped. If
    the daemon ends, the command goes on. Raises DaemonSilent, DoesNotFit, WaitTimeout, UnknownDevice or
    BadQuantity.
    """
    daemon = Daemon(args)
    asked = {
        "bytes": _read("MEMORY", args.memory, parse_bytes),
        "gpu": args.gpu,
        "lasts_s": None if args.lasts is None else _read("--for", args.lasts, parse_duration),
        "wait_s": _read("--wait", args.wait, parse_duration),
        "pid": os.getpid() if daemon.is_local else None,
        "hold": True,
    }
    holder = _Holder(daemon, asked)
    lease = holder.granted()
    name, where = lease["name"], ", ".join(lease["devices"])
    lasts = "" if lease["left_s"] is None else f" for {format_duration(lease['left_s'])}"
    _tell(f"{name} holds {format_bytes(lease['predicted_bytes'])} of {where}{lasts}")
    try:
        return holder.run(args.command, {**os.environ, **lease["env"]})
    finally:
        with suppress(CotenantError):
            daemon.send(f"{_LEASES}/{quote(name, safe='~')}", method="DELETE")


def _read(what: str, text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text)
    except BadQuantity as error:
        raise BadQuantity(f"{what}: {error.message}", hint=error.hint) from None


def _tell(text: str) -> None:
    print(f"cotenant: {text}", file=sys.stderr, flush=True)


class _Holder:
    """Holds the lease by its connection, read in a thread, while the command runs."""

    def __init__(self, daemon: Daemon, asked: dict[str, Any]) -> None:
        self._daemon = daemon
        self._asked = asked
        self._first: queue.Queue[Any] = queue.Queue()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._why: str | None = None
        threading.Thread(target=self._hold, daemon=True).start()

    def granted(self) -> Any:
        """Return the lease once it is granted. Raises what the daemon reports."""
        first = self._first.get()
        if isinstance(first, Exception):
            raise first
        return first

    def run(self, command: list[str], env: dict[str, str]) -> int:
        """Run a command to its end, or that of the lease, and return its status as a shell does."""
        try:
            process = subprocess.Popen(command, env=env)
        except OSError as error:
            _tell(f"{command[0]} cannot be run: {error.strerror}")
            return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            threading.Thread(target=self._stop_when_ended, args=(process,), daemon=True).start()
            while True:
                # The terminal sends Ctrl-C to the command as well, which decides what it means.
                with suppress(KeyboardInterrupt):
                    status = process.wait()
                    return _BY_SIGNAL - status if status < 0 else status
        finally:
            signal.signal(signal.SIGTERM, before)

    def _hold(self) -> None:
        try:
            for line in self._daemon.lines(_LEASES, self._asked):
                if "ended" in line:
                    self._why = line["ended"]
                else:
                    self._first.put(line)
        except Exception as error:
            self._first.put(error)
        self._ended.set()

    def _stop_when_ended(self, process: subprocess.Popen[bytes]) -> None:
        """Stop the command when its lease has ended, unless the daemon has."""
        self._ended.wait()
        if process.poll() is not None:
            return
        if self._why is None or "shutting down" in self._why:
            _tell("the daemon has ended: the command goes on, and its memory is held for it no more")
            return
        _tell(f"{self._why}; the command is stopped")
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
