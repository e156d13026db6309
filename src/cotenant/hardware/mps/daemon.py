"""One MPS control daemon: started in the foreground and watched, or adopted; or an operator's, on its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from cotenant.domain.errors import MpsFailed
from cotenant.domain.units import format_duration
from cotenant.hardware.mps.control import MpsControl
from cotenant.hardware.mps.directories import MpsDirectories
from cotenant.hardware.mps.discovery import FoundDaemon, find_daemon, find_daemons, is_of_mps, kill_orphans
from cotenant.programs.run import run_program

READY_WITHIN_S: Final = 20.0
_POLL_S: Final = 0.02
_TERM_GRACE_S: Final = 1.0
_OUTPUT: Final = "daemon.out"
_LOG = logging.getLogger(__name__)
_GONE_WITHIN_S: Final = 3.0


class _Child(Protocol):
    """A child process with its group, which dies with this process.

    `stop` asks the group to end, kills it after `grace_s`, and waits until it is gone.
    """

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    async def wait(self) -> int: ...
    async def stop(self, grace_s: float) -> bool: ...


Spawn = Callable[[Sequence[str], Mapping[str, str], int], _Child]
"""Starts a command with an environment, its output going to a file descriptor. Raises OSError."""


class MpsDaemon:
    """A control daemon that answers; without a `child` it runs already, and is adopted.

    One that we started dies with this process, and its directories are left empty. An adopted one is only
    used and watched: it keeps running after us.
    """

    def __init__(
        self, control: MpsControl, pid: int | None, child: _Child | None = None, lock: int | None = None
    ) -> None:
        self.control = control
        self.pid = pid
        self._child = child
        self._lock = lock
        self._stopping = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pidfd = -1
        if child is None and pid is not None:
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(pid)
                asyncio.get_running_loop().add_reader(self._pidfd, self._gone)

    @property
    def adopted(self) -> bool:
        """Whether it was not started by Cotenant."""
        return self._child is None

    @classmethod
    async def start(
        cls,
        program: Path,
        directories: MpsDirectories,
        cards: Sequence[str],
        spawn: Spawn,
        *,
        ready_within_s: float = READY_WITHIN_S,
    ) -> MpsDaemon:
        """Start one for these cards (UUIDs), or adopt the one that listens in these directories already.

        Call it in the thread of the event loop: the daemon dies with that thread. Raises MpsFailed.
        """
        directories.create(cards)
        control = MpsControl(program, directories)
        lock = directories.try_lock()
        try:
            found = await asyncio.to_thread(find_daemon, control)
            if found is None and lock is None:
                found = await _another_starts(control, ready_within_s)
            if found is not None:
                return cls(found.control, found.pid)
            await asyncio.to_thread(kill_orphans, directories)
            child = _spawned(program, directories, cards, spawn)
            try:
                await _ready(control, child, ready_within_s)
            except BaseException:
                await asyncio.shield(child.stop(_TERM_GRACE_S))
                directories.remove_sockets()
                raise
            started, lock = cls(control, child.pid, child, lock), None
            return started
        finally:
            if lock is not None:
                os.close(lock)

    async def wait_end(self) -> None:
        """Return when it has ended by itself; never after `stop`."""
        if self._child is not None:
            await self._child.wait()
        else:
            await asyncio.shield(self._ended)
        if self._stopping:
            await asyncio.get_running_loop().create_future()

    async def stop(self, within_s: float) -> None:
        """End it by `quit`, kill it after `within_s`, and clean up; an adopted daemon is left running."""
        self._stopping = True
        if self._child is None:
            self._unwatch()
            return
        if self._child.returncode is None:
            try:
                await asyncio.to_thread(self.control.quit, within_s)
                async with asyncio.timeout(_TERM_GRACE_S):
                    await self._child.wait()
            except (MpsFailed, TimeoutError) as error:
                why = str(error) or "it did not end"
                _LOG.warning("the MPS daemon %d had to be killed: %s", self.pid, why)
        await self._child.stop(_TERM_GRACE_S)
        await self.clean()

    async def clean(self) -> None:
        """Remove what a daemon of ours that has ended left behind: its servers and sockets."""
        if self._child is None or self._child.returncode is None:
            return
        await asyncio.to_thread(kill_orphans, self.control.directories)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _gone(self) -> None:
        self._unwatch()
        if not self._ended.done():
            self._ended.set_result(None)

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def _spawned(program: Path, directories: MpsDirectories, cards: Sequence[str], spawn: Spawn) -> _Child:
    environment = {**os.environ, **daemon_environment(directories, cards)}
    try:
        with open(directories.log / _OUTPUT, "wb", opener=partial(os.open, mode=0o600)) as output:
            return spawn([str(program), "-f"], environment, output.fileno())
    except OSError as error:
        raise MpsFailed(f"{program} cannot be started: {error.strerror}") from None


def daemon_environment(directories: MpsDirectories, cards: Sequence[str]) -> dict[str, str]:
    """Return the variables of a control daemon for some cards.

    Daemon and clients need UUIDs: given indices, MPS renumbers the cards, and a client that keeps its own
    indices finds none.
    """
    return {
        **directories.variables(),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(cards),
    }


async def _another_starts(control: MpsControl, within_s: float) -> FoundDaemon:
    """Wait for the daemon that another Cotenant is starting in the same directories."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while loop.time() < deadline:
        found = await asyncio.to_thread(find_daemon, control)
        if found is not None:
            return found
        await asyncio.sleep(_POLL_S)
    raise MpsFailed(
        f"another Cotenant holds {control.directories.pipe.parent}, and no MPS daemon answers there",
        hint="See `cotenant mps status`, or give each its own COTENANT_STATE_DIR.",
    )


async def _ready(control: MpsControl, child: _Child, within_s: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    what = f"did not answer within {format_duration(within_s)}"
    while loop.time() < deadline:
        if child.returncode is not None:
            what = f"ended with status {child.returncode}"
            break
        if control.directories.recorded_pid() is not None and await asyncio.to_thread(control.answers):
            return
        await asyncio.sleep(_POLL_S)
    raise MpsFailed(
        f"the MPS daemon {what}: {_said(control.directories)}",
        hint=f"Its logs are in {control.directories.log}.",
    )


def _said(directories: MpsDirectories) -> str:
    for name in (_OUTPUT, "control.log"):
        with contextlib.suppress(OSError):
            text = (directories.log / name).read_text(encoding="utf-8", errors="replace").strip()
            if text:
                return text[-400:]
    return "it printed nothing"


def start_manually(program: Path, directories: MpsDirectories, cards: Sequence[str]) -> FoundDaemon:
    """Start a daemon in the background for these cards (UUIDs). Raises MpsFailed, also if one has a card."""
    for running in find_daemons(program, directories.pipe.parents[2], os.environ):
        theirs = cards if running.cards is None else running.cards
        shared = [card for card in cards if card.startswith(tuple(theirs))]
        if shared:
            raise MpsFailed(
                f"an MPS daemon runs for {', '.join(shared)} already, as process {running.pid}",
                hint="See `cotenant mps status`; `cotenant mps stop` ends one of Cotenant's.",
            )
    directories.create(cards)
    control = MpsControl(program, directories)
    lock = directories.try_lock()
    if lock is None:
        raise MpsFailed(
            f"a running Cotenant uses {directories.pipe.parent}",
            hint="It starts and ends its MPS daemon by itself.",
        )
    try:
        kill_orphans(directories)
        return _started_manually(control, cards)
    finally:
        os.close(lock)


def stop_manually(control: MpsControl, within_s: float) -> None:
    """End a daemon with its servers and clean up after it. Raises MpsFailed if it does not end."""
    pid = control.directories.recorded_pid()
    control.quit(within_s)
    deadline = time.monotonic() + _GONE_WITHIN_S
    while pid is not None and is_of_mps(pid):
        if time.monotonic() >= deadline:
            hint = f"`kill -9 {pid}`, then `cotenant mps stop`."
            raise MpsFailed(f"the MPS daemon, process {pid}, did not end", hint=hint)
        time.sleep(_POLL_S)
    remove_orphans(control.directories)


def remove_orphans(directories: MpsDirectories) -> None:
    """Remove what an ended daemon of ours left behind, unless another is being started there."""
    if not directories.ours:
        return
    lock = directories.try_lock()
    if lock is None:
        return
    try:
        kill_orphans(directories)
    finally:
        os.close(lock)


def _started_manually(control: MpsControl, cards: Sequence[str]) -> FoundDaemon:
    argv = [str(control.program), "-d"]
    env = {**os.environ, **daemon_environment(control.directories, cards)}
    done = run_program(argv, READY_WITHIN_S, env=env, kill_children=False)
    if done.problem is not None:
        raise MpsFailed(f"`{' '.join(argv)}` failed: {done.problem}")
    deadline = time.monotonic() + READY_WITHIN_S
    while done.ok and time.monotonic() < deadline:
        found = find_daemon(control)
        if found is not None:
            return found
        time.sleep(_POLL_S)
    said = done.output.strip() or f"status {done.status}"
    raise MpsFailed(
        f"the MPS daemon could not be started: {said}", hint=f"Its logs are in {control.directories.log}."
    )
