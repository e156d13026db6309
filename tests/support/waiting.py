"""Waiting for what a process, a thread or a task brings about.

The deadline only ends a test that would hang. It does not say how fast a machine is: no test
shortens it.
"""

import asyncio
import os
import select
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 60.0


def wait_until(condition: Callable[[], object], *, every_s: float = 0.01) -> None:
    """Return when the condition holds; it is tried every so often."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(every_s)


async def until(condition: Callable[[], object]) -> None:
    """Return when the condition holds; the event loop runs meanwhile."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.002)


def ends(pidfd: int) -> bool:
    """Whether the process ends; closes the descriptor."""
    try:
        return bool(select.select([pidfd], [], [], DEADLINE_S)[0])
    finally:
        os.close(pidfd)


def has_ended(pidfd: int) -> bool:
    """Whether the process has ended already; closes the descriptor."""
    try:
        return bool(select.select([pidfd], [], [], 0)[0])
    finally:
        os.close(pidfd)


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
