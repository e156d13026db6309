"""All that an engine starts ends with it, whatever its process group, session or environment."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cotenant.engines.process.marks import MARK, kill_orphans, new_mark
from cotenant.engines.process.process import FamilyProcess
from tests.support.waiting import alive, ends, wait_until

ROOT = Path(__file__).resolve().parents[3]

# Starts a worker the way its argument names, and waits; with "daemon" it leaves the worker and ends.
PROGRAM = '''
import os, signal, subprocess, sys
how, told = sys.argv[1:]
code = f"""
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open({told!r} + ".part", "w") as part:
    part.write(str(os.getpid()))
os.rename({told!r} + ".part", {told!r})
signal.pause()
"""
worker = [sys.executable, "-I", "-S", "-c", code]
if how == "daemon" or how == "orphan":
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve(worker[0], worker, {})
        os._exit(0)
elif how == "group":
    subprocess.Popen(worker, process_group=0)
else:
    subprocess.Popen(worker, start_new_session=how != "plain", env={} if how == "unmarked" else None)
if how == "daemon":
    os._exit(0)
signal.signal(signal.SIGTERM, lambda *_: os._exit(5))
while True:
    signal.pause()
'''
DAEMON = """
import asyncio, sys
from tests.engines.process.test_family import started

async def main(how, told):
    engine = await started(how, told)
    print(engine._popen.pid, engine.pid, flush=True)
    await engine.wait()

asyncio.run(main(*sys.argv[1:]))
"""
WAYS = ["plain", "group", "session", "unmarked", "orphan"]


async def started(how: str, told: str) -> FamilyProcess:
    argv = [sys.executable, "-I", "-S", "-c", textwrap.dedent(PROGRAM), how, told]
    return await FamilyProcess.start_family(argv, env={}, output_fd=2)


def worker(told: Path) -> int:
    wait_until(told.exists)
    return int(told.read_text())


@pytest.mark.parametrize("how", WAYS)
async def test_what_it_started_ends_when_it_is_stopped(how: str, tmp_path: Path) -> None:
    engine = await started(how, str(tmp_path / "told"))
    pidfd = os.pidfd_open(await asyncio.to_thread(worker, tmp_path / "told"))
    await asyncio.to_thread(wait_until, lambda: _handles_sigterm(engine.pid))
    assert await engine.stop(60)
    assert engine.returncode == 5, "it was asked first"
    assert ends(pidfd)


@pytest.mark.parametrize("how", WAYS)
async def test_what_it_started_ends_when_it_dies(how: str, tmp_path: Path) -> None:
    engine = await started(how, str(tmp_path / "told"))
    pidfd = os.pidfd_open(await asyncio.to_thread(worker, tmp_path / "told"))
    os.kill(engine.pid, signal.SIGSEGV)
    assert await engine.wait() == -signal.SIGSEGV
    assert ends(pidfd)


async def test_a_program_that_daemonizes_has_ended_and_leaves_nothing(tmp_path: Path) -> None:
    engine = await started("daemon", str(tmp_path / "told"))
    assert await engine.wait() == 0
    if (tmp_path / "told").exists():
        assert not alive(worker(tmp_path / "told"))


@pytest.mark.parametrize("how", WAYS)
def test_nothing_outlives_a_killed_daemon(how: str, tmp_path: Path) -> None:
    def kill(daemon: int, guard: int, leader: int) -> None:
        os.kill(daemon, signal.SIGKILL)

    assert ends(_worker_after(how, tmp_path, kill))


@pytest.mark.parametrize("how", ["plain", "group", "session"])
def test_what_a_killed_guard_leaves_is_found_by_its_mark(how: str, tmp_path: Path) -> None:
    def kill(daemon: int, guard: int, leader: int) -> None:
        os.kill(guard, signal.SIGKILL)

    assert ends(_worker_after(how, tmp_path, kill))


def test_what_a_killed_daemon_and_a_killed_guard_leave_is_found_by_the_next_daemon(tmp_path: Path) -> None:
    def kill(daemon: int, guard: int, leader: int) -> None:
        os.kill(daemon, signal.SIGSTOP)
        os.kill(guard, signal.SIGKILL)
        os.kill(daemon, signal.SIGKILL)

    pidfd = _worker_after("session", tmp_path, kill)
    kill_orphans()
    assert ends(pidfd)


def test_engines_of_a_daemon_that_runs_are_no_orphans() -> None:
    with subprocess.Popen(["/bin/sleep", "600"], env={MARK: new_mark()}) as engine:
        kill_orphans()
        assert alive(engine.pid)
        engine.kill()


async def test_a_program_that_is_not_there_says_so(tmp_path: Path) -> None:
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    engine = await FamilyProcess.start_family(["/nonexistent"], env={}, output_fd=log)
    os.close(log)
    assert await engine.wait() == 127
    assert (tmp_path / "log").read_text() == "E /nonexistent: cannot be started: No such file or directory\n"


def _worker_after(how: str, folder: Path, kill: Callable[[int, int, int], None]) -> int:
    """Start a daemon with an engine, kill some of that, and return a descriptor of the engine's worker."""
    command = [sys.executable, "-c", DAEMON, how, str(folder / "told")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout
        guard, leader = map(int, daemon.stdout.readline().split())
        pidfd = os.pidfd_open(worker(folder / "told"))
        kill(daemon.pid, guard, leader)
        daemon.wait(60)
    return pidfd


def _handles_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def _lease(path: Path, in_s: float) -> float:
    """State a lease that ends in so many seconds; return the instant."""
    due_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(in_s * 1e9)
    path.write_bytes(due_ns.to_bytes(8, "little"))
    return due_ns / 1e9


async def test_it_ends_with_its_lease_and_not_before(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    first = _lease(lease, 0.5)
    engine = await FamilyProcess.start_family(["/bin/sleep", "600"], env={}, output_fd=2, lease=lease)
    due = _lease(lease, 1.0)
    # A machine that was too slow to extend it in time has seen the first.
    due = due if time.clock_gettime(time.CLOCK_BOOTTIME) < first else first
    assert await engine.wait() == -signal.SIGKILL
    assert time.clock_gettime(time.CLOCK_BOOTTIME) >= due


async def test_nothing_begins_once_the_lease_is_over(tmp_path: Path) -> None:
    _lease(tmp_path / "lease", -1)
    engine = await FamilyProcess.start_family(
        ["/bin/sleep", "600"], env={}, output_fd=2, lease=tmp_path / "lease"
    )
    assert await engine.wait() == -signal.SIGKILL
