"""MPS daemons that an operator starts and ends."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cotenant.domain.errors import MpsFailed
from cotenant.hardware.mps.control import MpsControl
from cotenant.hardware.mps.daemon import READY_WITHIN_S, daemon_environment
from cotenant.hardware.mps.directories import MpsDirectories
from cotenant.hardware.mps.discovery import FoundDaemon, find_daemon, is_of_mps, kill_orphans
from cotenant.programs.run import run_program

_POLL_S: Final = 0.02
_GONE_WITHIN_S: Final = 3.0


def start_manually(program: Path, directories: MpsDirectories, cards: Sequence[str]) -> FoundDaemon:
    """Start a daemon in the background for these cards (UUIDs). Raises MpsFailed, also if one runs."""
    directories.create(cards)
    control = MpsControl(program, directories)
    running = find_daemon(control)
    if running is not None:
        raise MpsFailed(
            f"an MPS daemon runs for these cards already, as process {running.pid}",
            hint="See `cotenant mps status`.",
        )
    lock = directories.try_lock()
    if lock is None:
        raise MpsFailed(
            f"a running Cotenant uses {directories.pipe.parent}",
            hint="It starts and ends its MPS daemon by itself.",
        )
    try:
        kill_orphans(directories)
        return _started(control, cards)
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


def _started(control: MpsControl, cards: Sequence[str]) -> FoundDaemon:
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
