"""Processes of MPS as /proc shows them."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cotenant.hardware.mps.directories import PIPE_VARIABLE

_PROC: Final = Path("/proc")
_PROGRAMS: Final = "nvidia-cuda-mps-"


def variables_of(pid: int) -> dict[str, str] | None:
    """Return a process's environment as it was started; None if it has ended or is another user's."""
    try:
        content = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    pairs = (entry.partition(b"=") for entry in content.split(b"\0") if b"=" in entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def is_of_mps(pid: int) -> bool:
    """Whether a process is a control daemon or a server of MPS."""
    try:
        content = (_PROC / str(pid) / "cmdline").read_bytes()
        state = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    if state.rpartition(")")[2].split()[:1] == ["Z"]:
        return False
    words = content.split(b"\0")[:2]
    return any(os.path.basename(os.fsdecode(word)).startswith(_PROGRAMS) for word in words)


def orphans_of(pipe: Path) -> Iterator[int]:
    """Yield the processes of MPS, of this user, that were started for a pipe directory."""
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        pid = int(folder.name)
        if is_of_mps(pid) and (variables_of(pid) or {}).get(PIPE_VARIABLE) == str(pipe):
            yield pid


def kill_orphans(pipe: Path) -> None:
    """Kill the servers that a killed control daemon left behind: they still hold their cards."""
    for pid in orphans_of(pipe):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
