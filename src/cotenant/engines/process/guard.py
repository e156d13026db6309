"""Ties a child's life to its parent's, and the lives of all that it starts to its own.

As a script (`python -I -S guard.py PARENT_PID PROGRAM ARG…`) it does so for a program that cannot do it
itself, then becomes that program: same process id, no extra process. It costs 14 ms. With `--family FD`
before the program it stays the program's parent and writes the program's process id to FD. As a subreaper it
adopts whatever the program orphans, also from other process groups and sessions. When the program or the
daemon ends it kills all of them, then ends as the program did.

`--lease FILE` after that makes it kill them also once a lease has ended: the file's first eight bytes are the
instant, in nanoseconds of CLOCK_BOOTTIME, which counts the time in which the machine sleeps. Whoever extends
the lease writes a later one. A parent that is stopped or hangs thus keeps nothing beyond it.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import Final

FAMILY: Final = "--family"
LEASE: Final = "--lease"
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
_PARENT_DIED: Final = signal.SIGUSR1
_LEASE_DUE: Final = signal.SIGALRM
_WAITED_FOR: Final = (signal.SIGCHLD, _PARENT_DIED, _LEASE_DUE)
_TIMER_ABSTIME: Final = 1
_KILL_WITHIN_S: Final = 5.0
"""A driver may hold a killed process for longer; it cannot start anything any more."""
_KILL_AGAIN_S: Final = 0.02


def die_with_parent(parent_pid: int, by: int = signal.SIGKILL) -> None:
    """Have the kernel signal this process when the thread that started it ends, even while it is loading.

    The setting survives `exec`. If the parent has already ended, this process exits.
    """
    _prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent_pid:
        os._exit(1)


def descendants(ancestor: int) -> list[int]:
    """Return the processes below a process that run; zombies hold nothing and do not count."""
    children: dict[int, list[tuple[int, bool]]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # The name may have any characters; the state and the parent follow it.
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        children.setdefault(int(parent), []).append((int(name), state not in (b"Z", b"X")))
    below, found = [ancestor], []
    while below:
        for pid, runs in children.pop(below.pop(), ()):
            below.append(pid)
            found += [pid] if runs else []
    return found


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


class _LeaseTimer:
    """Has the kernel send _LEASE_DUE when a lease is over: nothing runs until then."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._libc = ctypes.CDLL(None)
        if not hasattr(self._libc, "timer_create"):
            self._libc = ctypes.CDLL("librt.so.1")  # glibc before 2.34
        self._timer = ctypes.c_void_p()
        if self._libc.timer_create(time.CLOCK_BOOTTIME, None, ctypes.byref(self._timer)):
            raise OSError("the kernel has no timer for a lease")

    def over(self) -> bool:
        """Whether it is over; if not, the signal comes once it may be."""
        due_ns = int.from_bytes(os.pread(self._fd, 8, 0), "little")
        late_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - due_ns
        if late_ns >= 0:
            os.write(2, b"[cotenant] its lease ended %d ms ago: it is killed\n" % (late_ns // 1_000_000))
            return True
        # No interval, then the instant: each is seconds and nanoseconds.
        setting = (ctypes.c_long * 4)(0, 0, *divmod(due_ns, 1_000_000_000))
        self._libc.timer_settime(self._timer, _TIMER_ABSTIME, ctypes.byref(setting), None)
        return False


def _run_family(parent_pid: int, report_fd: int, lease: str | None, argv: list[str]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    die_with_parent(parent_pid, _PARENT_DIED)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guard = os.getpid()
    leader = os.fork()
    if leader == 0:
        os.setpgid(0, 0)
        os.close(report_fd)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED_FOR)
        die_with_parent(guard)
        _become(argv)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A service manager signals all processes, but the daemon decides when the engine ends.
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # it did so itself and runs already
        os.setpgid(leader, leader)
    os.write(report_fd, b"%d" % leader)
    os.close(report_fd)
    _wait(leader, None if lease is None else _LeaseTimer(lease))
    _kill_descendants(guard, leader)
    ended, status = os.waitpid(leader, os.WNOHANG)
    _end_as(status if ended else signal.SIGKILL)


def _wait(leader: int, lease: _LeaseTimer | None) -> None:
    """Return when the leader or the daemon has ended, or the lease; reap what was adopted.

    The leader is not reaped, so that its id is no other process's while the daemon may signal it.
    """
    while True:
        _reap_all_but(leader)
        if os.waitid(os.P_PID, leader, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        if (lease is not None and lease.over()) or signal.sigwait(_WAITED_FOR) == _PARENT_DIED:
            return


def _reap_all_but(leader: int) -> None:
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
        if ended.si_pid == leader:
            return
        os.waitpid(ended.si_pid, 0)


def _kill_descendants(guard: int, leader: int) -> None:
    """Kill until nothing is left: an orphan becomes a child of this process, so that none escapes."""
    deadline = time.monotonic() + _KILL_WITHIN_S
    while (left := descendants(guard)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):  # it has ended, or belongs to another user
                os.kill(pid, signal.SIGKILL)
        signal.sigtimedwait((signal.SIGCHLD,), _KILL_AGAIN_S)
        _reap_all_but(leader)


def _end_as(status: int) -> None:
    """End by the same signal, or with the same exit status, as a child did."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        _prctl(_PR_SET_DUMPABLE, 0)  # no second core file
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def _become(argv: list[str]) -> None:
    try:
        os.execv(argv[0], argv)  # noqa: S606  no shell is needed
    except OSError as error:
        os.write(2, f"E {argv[0]}: cannot be started: {error.strerror}\n".encode())
        os._exit(127)


if __name__ == "__main__":
    if sys.argv[2] == FAMILY:
        leased = sys.argv[4] == LEASE
        _run_family(
            int(sys.argv[1]),
            int(sys.argv[3]),
            sys.argv[5] if leased else None,
            sys.argv[6 if leased else 4 :],
        )
    else:
        die_with_parent(int(sys.argv[1]))
        _become(sys.argv[2:])
