"""The mark in the environment of all that an engine starts: what a killed guard leaves is found by it."""

import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterable
from typing import Final

from cotenant.engines.process.owner import Owner
from cotenant.http.listeners import has_socket, listening_sockets

MARK: Final = "COTENANT_ENGINE"
_ROUNDS: Final = 50

_log = logging.getLogger(__name__)


def new_mark() -> str:
    """Return a mark that names this daemon and no other engine has."""
    return f"{Owner.here().label}/{secrets.token_hex(8)}"


def kill_marked(mark: str) -> int:
    """Kill all processes with a mark; return how many there were. It reads /proc: call it in a thread."""
    return _kill(lambda found: found == mark)


def marked(pids: Iterable[int], port: int) -> frozenset[int]:
    """Return which processes belong to engines of the daemon at a port, as far as this user may see that."""
    sockets = [*listening_sockets(port)]

    def of_daemon(found: str) -> bool:
        owner = Owner.parse(found.rpartition("/")[0])
        return owner is not None and owner.is_here and any(has_socket(owner.pid, *each) for each in sockets)

    return frozenset(pid for pid in pids if _is(pid, of_daemon))


def kill_orphans() -> int:
    """Kill the processes of engines whose daemon has ended; return how many there were."""

    def orphaned(found: str) -> bool:
        owner = Owner.parse(found.rpartition("/")[0])
        return owner is not None and owner.gone

    killed = _kill(orphaned)
    if killed:
        _log.warning("killed %d processes of engines whose Cotenant has ended", killed)
    return killed


def _kill(wanted: Callable[[str], bool]) -> int:
    killed: set[int] = set()
    for _ in range(_ROUNDS):
        # Again until nothing new is found: one may have started another meanwhile.
        fresh = {pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _is(pid, wanted)}
        fresh -= killed | {os.getpid()}
        if not fresh:
            break
        for pid in fresh:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                # Looked at again: another process may have the id by now.
                if _is(pid, wanted):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except OSError:
                pass  # it has ended, or belongs to another user
            finally:
                os.close(pidfd)
        killed |= fresh
    return len(killed)


def _is(pid: int, wanted: Callable[[str], bool]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return False
    prefix = f"{MARK}=".encode()
    return any(wanted(each[len(prefix) :].decode()) for each in variables if each.startswith(prefix))
