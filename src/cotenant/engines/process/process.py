"""One child process, and the processes that it starts."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence, Set
from itertools import chain
from pathlib import Path
from typing import Final, Self

from cotenant.engines.process import guard
from cotenant.engines.process.marks import MARK, kill_marked, new_mark
from cotenant.http.listeners import has_socket
from cotenant.programs.run import readable

_GROUP_POLL_S: Final = 0.01
GROUP_GONE_WITHIN_S: Final = 10.0
_PROC: Final = Path("/proc")
_FOREIGN: Final = ("LLAMA_", "GGML_", "MTMD_", "AIP_", "COTENANT_")
"""llama-server reads `LLAMA_ARG_*`, `LLAMA_API_KEY` and, as cloud runtimes set them, `AIP_*`."""


_SECRET_NAME: Final = re.compile(
    r"(?:^|_)(?:KEYS?|TOKENS?|SECRETS?|PASS|PASSPHRASE|CREDENTIALS?|AUTH|PAT|DSN)(?:_|\d|$)"
    r"|PASSWORD|PASSWD|APIKEY",
    re.IGNORECASE,
)
_URL_WITH_PASSWORD: Final = re.compile(r"://[^/\s@]*:[^/\s@]+@")


def scrubbed(ambient: Mapping[str, str], withheld: Set[str] = frozenset()) -> dict[str, str]:
    """Return `ambient` without what engines read or belongs to Cotenant, and without secrets.

    Secrets are told by their names, as URLs with a password (proxies excepted), or by `withheld` values.
    """
    return {
        name: value
        for name, value in ambient.items()
        if not name.startswith(_FOREIGN)
        and not _SECRET_NAME.search(name)
        and (name.lower().endswith("_proxy") or not _URL_WITH_PASSWORD.search(value))
        and value not in withheld
    }


def guarded(argv: Sequence[str]) -> list[str]:
    """Return a command that starts another program so that it ends with this process."""
    return [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *argv]


class ChildProcess:
    """A process that leads a group of its own.

    A pidfd reports its end at once; the rest of its group is killed then. `command` must end with this
    process (`guarded`, or `guard.die_with_parent`). It ends with the *thread* that starts it, so call `start`
    in the thread of the event loop.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._exit = asyncio.create_task(self._reap())

    @classmethod
    def start(cls, command: Sequence[str], *, env: Mapping[str, str], output_fd: int) -> Self:
        """Start without waiting for anything but `exec` (1 to 2 ms). Raises OSError."""
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output_fd,
            stderr=output_fd,
            env=env,
            start_new_session=True,
        )
        return cls(popen)

    @property
    def pid(self) -> int:
        """The process id, also the group's."""
        return self._popen.pid

    def owns_socket(self, inode: int, uid: int) -> bool:
        """Whether one of its processes has a socket; of one that may not be looked into, its user must be."""
        own = self.pid, self._popen.pid
        below = (pid for top in own for pid in guard.descendants(top))
        return any(has_socket(pid, inode, uid) for pid in chain(own, below))

    @property
    def returncode(self) -> int | None:
        """The exit status, minus the signal's number if a signal killed it, None while it runs."""
        return self._exit.result() if self._exit.done() and not self._exit.cancelled() else None

    async def wait(self) -> int:
        """Return the exit status once it has ended."""
        return await asyncio.shield(self._exit)

    async def stop(self, grace_s: float) -> bool:
        """Ask the group to end, kill it after `grace_s`, and wait until it is gone; may be called again.

        False if the kernel still holds some of it after 10 s, as it does while a driver cleans up.
        """
        if not self._exit.done():
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self.wait()
        if not self._exit.done():
            self._signal(signal.SIGKILL)
        try:
            async with asyncio.timeout(GROUP_GONE_WITHIN_S):
                await self.wait()
                await wait_group_gone(self.pid)
        except TimeoutError:
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def _reap(self) -> int:
        await process_end(self._popen.pid)
        # The leader is not reaped yet, so its id cannot belong to another group.
        self._signal(signal.SIGKILL)
        return self._popen.wait()


class FamilyProcess(ChildProcess):
    """A program under a guard that stays its parent and ends with it, once all that it started is killed.

    What a killed guard leaves is found by its mark, a variable that the program's children inherit.
    """

    def __init__(self, popen: subprocess.Popen[bytes], leader: int, mark: str) -> None:
        super().__init__(popen)
        self._leader = leader
        self._mark = mark

    @classmethod
    async def start_family(
        cls, argv: Sequence[str], *, env: Mapping[str, str], output_fd: int, lease: Path | None = None
    ) -> Self:
        """Start a program; return once its process id is known, before it runs. Raises OSError.

        It ends with the lease that the file `lease` states, if there is one (`guard`).
        """
        mark = new_mark()
        leased = () if lease is None else (guard.LEASE, str(lease))
        reading, writing = os.pipe()
        try:
            popen = subprocess.Popen(  # noqa: ASYNC220  exec takes 1 to 2 ms
                guarded([guard.FAMILY, str(writing), *leased, *argv]),
                stdin=subprocess.DEVNULL,
                stdout=output_fd,
                stderr=output_fd,
                env={**env, MARK: mark},
                start_new_session=True,
                pass_fds=(writing,),
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        try:
            await readable(reading)
            leader = int(os.read(reading, 32) or popen.pid)
        except asyncio.CancelledError:
            popen.kill()
            popen.wait()
            raise
        finally:
            os.close(reading)
        return cls(popen, leader, mark)

    @property
    def pid(self) -> int:
        """The program's process id, also its group's."""
        return self._leader

    async def _reap(self) -> int:
        await process_end(self._popen.pid)
        returned = self._popen.wait()
        await asyncio.to_thread(kill_marked, self._mark)
        return returned


async def process_end(child: int) -> None:
    """Return when a child process has ended; it is not reaped."""
    pidfd = os.pidfd_open(child)
    try:
        await readable(pidfd)
    finally:
        os.close(pidfd)


async def wait_group_gone(group: int) -> None:
    """Return when a process group has no member that runs."""
    while group_lives(group):  # noqa: ASYNC110  nothing reports the end of a grandchild
        await asyncio.sleep(_GROUP_POLL_S)


def group_lives(group: int) -> bool:
    """Whether a process group has a member that runs. Zombies hold nothing and do not count."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return any(_runs_in(folder, group) for folder in _PROC.iterdir() if folder.name.isdecimal())


def _runs_in(folder: Path, group: int) -> bool:
    try:
        # The name may have any characters; state, parent and group follow it.
        state, _, member_of = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return False
    return int(member_of) == group and state not in ("Z", "X")
