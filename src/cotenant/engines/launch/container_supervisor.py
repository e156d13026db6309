"""Supervises an engine in a container: ends it when the daemon ends, and reports its end to the daemon.

As a script (`python -I -S container_supervisor.py`) it reads a job from its input, one line of JSON, and
starts it. It reports on its output, one JSON object a line: `pid` or `failed`, then `code`. The line
`stop SECONDS` on its input ends the engine. The end of the input means that the daemon is gone, and kills the
engine. To kill the client of a container engine is not enough: the container is not a child of the client.

The engine's output and error messages go to the standard error.
"""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

_CREATE_TIMEOUT_S: Final = 600.0
_POLL_S: Final = 0.05
_LEASE_POLL_S: Final = 0.2
_INPUT: Final = 0
_LOG: Final = 2


class SupervisedContainer:
    """A created container, which is started here. `process` is its client, which ends with the container."""

    def __init__(self, engine: Sequence[str], name: str) -> None:
        self._engine = engine
        self._name = name
        # In a session of its own; all that it prints goes to the log.
        self.process = subprocess.Popen(
            [*engine, "start", "--attach", name],
            stdin=subprocess.DEVNULL,
            stdout=_LOG,
            stderr=_LOG,
            start_new_session=True,
        )

    def pid(self) -> int | None:
        """Return the container's first process id on the host; None before it is known."""
        return int(self._state().get("Pid") or 0) or None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its first process.

        The kernel does not deliver a signal to a first process that has no handler for it. So SIGTERM, which
        would end any other process, becomes SIGKILL.
        """
        if number == signal.SIGTERM and not _handles(self.pid(), number):
            number = signal.SIGKILL
        _ask([*self._engine, "kill", "--signal", number.name, self._name])

    def end(self) -> tuple[int, bool]:
        """Remove it; return its exit status, and whether it exceeded its memory limit.

        The status is the client's if the container's is unknown.
        """
        state = self._state()
        remove(self._engine, self._name)
        returned = self.process.wait()
        if state.get("Running") or not state.get("StartedAt") or state.get("Status") == "created":
            return returned or 1, False
        return int(state.get("ExitCode") or 0), bool(state.get("OOMKilled"))

    def _state(self) -> Mapping[str, Any]:
        answer = _ask([*self._engine, "container", "inspect", "--format", "{{json .State}}", self._name])
        try:
            state = json.loads(answer or "")
        except ValueError:
            return {}
        return state if isinstance(state, dict) else {}


class Commands:
    """The daemon's commands, read from the input. Once it is `closed` the daemon is gone."""

    def __init__(self) -> None:
        self._rest = b""
        self.closed = False

    def job(self) -> Mapping[str, Any] | None:
        """Wait for the job; None if the daemon ends first."""
        while b"\n" not in self._rest and not self.closed:
            self._read()
        line, _, self._rest = self._rest.partition(b"\n")
        job = json.loads(line) if line and not self.closed else None
        return job if isinstance(job, dict) else None

    def grace_s(self) -> float | None:
        """Return the grace of a stop command that has arrived, 0 once the daemon is gone, else None."""
        self._read()
        line, ended, rest = self._rest.partition(b"\n")
        if ended and line.startswith(b"stop "):
            self._rest = rest
            return float(line.removeprefix(b"stop "))
        return 0.0 if self.closed else None

    def _read(self) -> None:
        more = os.read(_INPUT, 65536)
        self._rest += more
        self.closed = self.closed or not more


def remove(engine: Sequence[str], name: str) -> bool:
    """Kill and remove a container; return whether it is gone. Without the kill it gets a grace of 10 s."""
    for attempt in range(5):
        if attempt:
            time.sleep(_POLL_S * 2**attempt)
        _ask([*engine, "kill", "--signal", "SIGKILL", name])
        _ask([*engine, "rm", "--force", name])
        listed = _ask([*engine, "ps", "--all", "--quiet", "--filter", f"name=^{name}$"])
        if listed is not None and not listed.strip():
            return True
    return False


def _ask(argv: Sequence[str]) -> str | None:
    """Return the output of a command, None if it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=30.0, check=False)
        if done.returncode == 0:
            return done.stdout.decode("utf-8", "replace")
    return None


def _handles(pid: int | None, number: signal.Signals) -> bool:
    """Whether a process handles a signal, or ignores it on purpose; True if that cannot be read."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            masks = dict(line.split(":", 1) for line in status if line.startswith(("SigIgn:", "SigCgt:")))
    except OSError:
        return True
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks.values())


def _report(**facts: object) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(facts).encode() + b"\n")


def _create(job: Mapping[str, Any]) -> str | None:
    """Create the container; return why that fails, or None."""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="cotenant-env-") as variables:
            env: Mapping[str, str] = job["env"]
            variables.writelines(f"{name}={value}\n" for name, value in env.items() if "\n" not in value)
            variables.flush()
            done = subprocess.run(
                [word.replace("{env_file}", variables.name) for word in job["create"]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env={**os.environ, **{name: value for name, value in env.items() if "\n" in value}},
                timeout=_CREATE_TIMEOUT_S,
                check=False,
            )
    except OSError as error:
        return f"{job['engine'][0]} cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{job['engine'][0]} did not create a container within {_CREATE_TIMEOUT_S:g} s"
    os.write(_LOG, done.stderr)
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"{job['engine'][0]} ended with status {done.returncode}"])[0][:500]


def _start(job: Mapping[str, Any], commands: Commands) -> SupervisedContainer | None:
    failed = _create(job)
    if failed is not None or (_wait_input(0) and commands.grace_s() is not None):
        remove(job["engine"], job["name"])
        _report(failed=failed or "it was stopped before it began")
        return None
    return SupervisedContainer(job["engine"], job["name"])


def _wait_input(timeout_s: float | None, *others: int) -> bool:
    """Wait until the input or another descriptor can be read; return whether the input can."""
    return _INPUT in select.select([_INPUT, *others], [], [], timeout_s)[0]


def _lease_left_s(path: str | None) -> float:
    """Return for how long it may run: the file has the end, in nanoseconds of CLOCK_BOOTTIME."""
    if path is None:
        return math.inf
    with open(path, "rb") as file:
        due_ns = int.from_bytes(file.read(8), "little")
    return (due_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9


def _supervise(engine: SupervisedContainer, commands: Commands, lease: str | None) -> None:
    """Return once the engine has ended, by itself, by command, or with its lease."""
    end = os.pidfd_open(engine.process.pid)
    reported = False
    kill_at: float | None = None
    try:
        while not select.select([end], [], [], 0)[0]:
            if not reported and (pid := engine.pid()) is not None:
                reported = True
                _report(pid=pid)
            pause_s = None if reported else _POLL_S
            if kill_at is not None:
                pause_s = max(0.0, min(kill_at - time.monotonic(), 1.0))
            if lease is not None and kill_at is None:
                # Not longer at once: the time in which the machine sleeps counts, but not for `select`.
                left_s = _lease_left_s(lease)
                pause_s = max(0.0, min(pause_s or _LEASE_POLL_S, left_s, _LEASE_POLL_S))
                kill_at = time.monotonic() if left_s <= 0 else None
            if commands.closed:
                # A closed input is always readable.
                select.select([end], [], [], pause_s)
            elif _wait_input(pause_s, end) and (grace_s := commands.grace_s()) is not None:
                kill_at = time.monotonic() + grace_s
                if grace_s > 0:
                    engine.signal(signal.SIGTERM)
            if kill_at is not None and time.monotonic() >= kill_at:
                engine.signal(signal.SIGKILL)
                # Repeated: the first process of the container may not have existed yet.
                kill_at = time.monotonic() + 1.0
    finally:
        os.close(end)


def _main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A service manager signals the daemon's whole group, but the daemon decides when the engine ends.
        # Not SIG_IGN: the engine would inherit it.
        signal.signal(number, lambda *_: None)
    commands = Commands()
    job = commands.job()
    if job is None or (engine := _start(job, commands)) is None:
        return
    _supervise(engine, commands, job.get("lease"))
    code, oom = engine.end()
    if oom:
        os.write(
            _LOG, b"E container: it was killed: out of the memory that the container may use (OOMKilled)\n"
        )
    _report(code=code, oom=oom)


if __name__ == "__main__":
    _main()
