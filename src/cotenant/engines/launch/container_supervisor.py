"""Stands between the daemon and an engine in a container, so that neither's end is missed by the other.

As a script (`python -I -S container_supervisor.py`) it reads one JSON object from its input, a line, starts
what that says, and tells on its output, a JSON object a line, how it goes: `pid`, or `failed`, then `code`.
Its input is the daemon's life: `stop SECONDS` ends the engine, and the end of the input kills it. Killing
the client of a container engine would not: the container is no child of its.

The engine's output, and complaints, go to the standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

_ANSWERS_WITHIN_S: Final = 30.0
_CREATES_WITHIN_S: Final = 600.0
_LOOKS_EVERY_S: Final = 0.05
_TRIES: Final = 5
_INPUT: Final = 0
_LOG: Final = 2


@dataclass(frozen=True, slots=True)
class Ended:
    """How an engine ended: its exit status, negative for a signal; `oom` if it outgrew its memory limit."""

    code: int
    oom: bool = False


class Kept(Protocol):
    """A started engine."""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Ends with the engine."""
        ...

    def pid(self) -> int | None:
        """Return the engine's process on this machine; None before it is known."""
        ...

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        ...

    def end(self) -> Ended:
        """Remove what is left of it, and tell how it ended."""
        ...


class KeptContainer:
    """A container that was created and is started here; the client's end is the container's."""

    def __init__(self, engine: Sequence[str], name: str) -> None:
        self._engine = engine
        self._name = name
        self.process = subprocess.Popen(
            [*engine, "start", "--attach", name],
            stdin=subprocess.DEVNULL,
            stdout=_LOG,
            stderr=_LOG,
            start_new_session=True,
        )

    def pid(self) -> int | None:
        """Return the container's first process, as the host numbers it."""
        return int(self._state().get("Pid") or 0) or None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its first process.

        The kernel keeps signals from a first process that has no handler for them: SIGTERM, which would end
        it anywhere else, becomes SIGKILL.
        """
        if number == signal.SIGTERM and not _minds(self.pid(), number):
            number = signal.SIGKILL
        _ask([*self._engine, "kill", "--signal", number.name, self._name])

    def end(self) -> Ended:
        """Remove it. A client that lost its container leaves a status of its own."""
        state = self._state()
        remove(self._engine, self._name)
        returned = self.process.wait()
        if (
            not state
            or state.get("Running")
            or not state.get("StartedAt")
            or state.get("Status") == "created"
        ):
            return Ended(returned or 1)
        return Ended(int(state.get("ExitCode") or 0), bool(state.get("OOMKilled")))

    def _state(self) -> Mapping[str, Any]:
        answer = _ask([*self._engine, "container", "inspect", "--format", "{{json .State}}", self._name])
        if answer is None:
            return {}
        with contextlib.suppress(ValueError):
            found = json.loads(answer)
            if isinstance(found, dict):
                return found
        return {}


class KeptGroup:
    """A process group, for container engines whose containers are ordinary children."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=_LOG,
            stderr=_LOG,
            env={**os.environ, **env},
            cwd="/",
            start_new_session=True,
        )

    def pid(self) -> int | None:
        """Return the group's leader."""
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self) -> Ended:
        """Kill what the leader left behind."""
        # Until the leader is reaped its id cannot be another's, so this hits nobody else.
        self.signal(signal.SIGKILL)
        return Ended(self.process.wait())


class Orders:
    """What the daemon says on the input. Once it is `silent` the daemon is gone."""

    def __init__(self) -> None:
        self._rest = b""
        self.silent = False

    def job(self) -> Mapping[str, Any] | None:
        """Wait for the job; None if the daemon went before."""
        while b"\n" not in self._rest and not self.silent:
            self._take()
        line, _, self._rest = self._rest.partition(b"\n")
        job = json.loads(line) if line and not self.silent else None
        return job if isinstance(job, dict) else None

    def grace_s(self) -> float | None:
        """Return the grace of an order to stop that has come; 0 once the daemon is gone, else None."""
        self._take()
        line, ended, rest = self._rest.partition(b"\n")
        if ended and line.startswith(b"stop "):
            self._rest = rest
            return float(line.removeprefix(b"stop "))
        return 0.0 if self.silent else None

    def _take(self) -> None:
        more = os.read(_INPUT, 65536)
        self._rest += more
        self.silent = self.silent or not more


def remove(engine: Sequence[str], name: str) -> bool:
    """Kill a container and remove it; whether it is gone. Without the kill it would have a grace of 10 s."""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_LOOKS_EVERY_S * 2**attempt)
        _ask([*engine, "kill", "--signal", "SIGKILL", name])
        _ask([*engine, "rm", "--force", name])
        listed = _ask([*engine, "ps", "--all", "--quiet", "--filter", f"name=^{name}$"])
        if listed is not None and not listed.strip():
            return True
    return False


def _ask(argv: Sequence[str], timeout_s: float = _ANSWERS_WITHIN_S) -> str | None:
    """Return what a command says on its output, None if it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
        if done.returncode == 0:
            return done.stdout.decode("utf-8", "replace")
    return None


def _minds(pid: int | None, number: signal.Signals) -> bool:
    """Whether a process handles a signal, or ignores it on purpose; assumed where that cannot be seen."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            masks = dict(line.split(":", 1) for line in status if line.startswith(("SigIgn:", "SigCgt:")))
    except OSError:
        return True
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks.values())


def _tell(**told: object) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(told).encode() + b"\n")


def _create(job: Mapping[str, Any]) -> str | None:
    """Create the container; return why that is not possible, None if it was."""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="cotenant-env-") as variables:
            variables.writelines(f"{name}={value}\n" for name, value in job["env"].items())
            variables.flush()
            done = subprocess.run(
                [word.replace("{env_file}", variables.name) for word in job["create"]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_CREATES_WITHIN_S,
                check=False,
            )
    except OSError as error:
        return f"{job['engine'][0]} cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{job['engine'][0]} did not create a container within {_CREATES_WITHIN_S:g} s"
    os.write(_LOG, done.stderr)
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"{job['engine'][0]} ended with status {done.returncode}"])[0][:500]


def _start(job: Mapping[str, Any], orders: Orders) -> Kept | None:
    if "run" in job:
        try:
            return KeptGroup(job["run"], job["env"])
        except OSError as error:
            _tell(failed=f"{job['run'][0]} cannot be started: {error.strerror}")
            return None
    failed = _create(job)
    if failed is not None or (_readable(0) and orders.grace_s() is not None):
        remove(job["engine"], job["name"])
        _tell(failed=failed or "it was stopped before it began")
        return None
    return KeptContainer(job["engine"], job["name"])


def _readable(timeout_s: float | None, *others: int) -> bool:
    """Wait until an order has come or another descriptor is ready; whether there is an order."""
    return _INPUT in select.select([_INPUT, *others], [], [], timeout_s)[0]


def _keep(kept: Kept, orders: Orders) -> None:
    """Return once it has ended, by itself or by order."""
    end = os.pidfd_open(kept.process.pid)
    told = False
    kill_at: float | None = None
    try:
        while not select.select([end], [], [], 0)[0]:
            if not told and (pid := kept.pid()) is not None:
                told = True
                _tell(pid=pid)
            pause_s = None if told else _LOOKS_EVERY_S
            if kill_at is not None:
                pause_s = max(0.0, min(kill_at - time.monotonic(), 1.0))
            if orders.silent:
                # Its end stays readable for ever.
                select.select([end], [], [], pause_s)
            elif _readable(pause_s, end) and (grace_s := orders.grace_s()) is not None:
                kill_at = time.monotonic() + grace_s
                if grace_s > 0:
                    kept.signal(signal.SIGTERM)
            if kill_at is not None and time.monotonic() >= kill_at:
                kept.signal(signal.SIGKILL)
                # Again after a while: it may not have been there yet.
                kill_at = time.monotonic() + 1.0
    finally:
        os.close(end)


def _carry_on(*_: object) -> None:
    """Handle a signal by nothing."""


def _main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A service manager signals the daemon's whole group; the daemon says when the engine shall end. A
        # signal that is ignored would be so in the engine too.
        signal.signal(number, _carry_on)
    orders = Orders()
    job = orders.job()
    if job is None or (kept := _start(job, orders)) is None:
        return
    _keep(kept, orders)
    ended = kept.end()
    if ended.oom:
        os.write(
            _LOG, b"E container: it was killed: out of the memory that the container may use (OOMKilled)\n"
        )
    _tell(code=ended.code, oom=ended.oom)


if __name__ == "__main__":
    _main()
