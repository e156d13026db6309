"""`cotenant serve` as a process, for tests of the whole."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

_ADDRESS = re.compile(r"Serving (.+) at (http://\S+)/v1")
_ENGINE_PID = re.compile(r"pid (\d+)")
_DEADLINE_S = 60.0


class Serving:
    """A running daemon: its address, its engine's process, and what it prints."""

    def __init__(
        self,
        argv: Sequence[str],
        state_dir: Path,
        env: dict[str, str] | None = None,
        module: str = "cotenant.cli.main",
        limits: Mapping[int, tuple[int, int]] | None = None,
    ) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("COTENANT_")}
        clean.pop("CUDA_VISIBLE_DEVICES", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**clean, "COTENANT_STATE_DIR": str(state_dir), **(env or {})},
            preexec_fn=partial(_set_limits, limits) if limits else None,
        )
        self.printed: list[str] = []
        self._more = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdout:
            self.process.stdout.close()

    @property
    def output(self) -> str:
        """What it has printed until now."""
        return "".join(self.printed)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until a line that it prints matches; fail when it ends or the deadline passes."""
        deadline, seen = time.monotonic() + _DEADLINE_S, 0
        with self._more:
            while True:
                for line in self.printed[seen:]:
                    if found := re.search(pattern, line):
                        return found
                seen = len(self.printed)
                if self._ended:
                    raise AssertionError(f"ended without {pattern!r}:\n{self.output}")
                if not self._more.wait(deadline - time.monotonic()) and len(self.printed) == seen:
                    raise AssertionError(f"no {pattern!r} in time:\n{self.output}")

    def address(self) -> str:
        return self.wait_for(_ADDRESS.pattern)[2]

    def engine_pid(self) -> int:
        return int(self.wait_for(_ENGINE_PID.pattern)[1])

    def terminate(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.finish()

    def finish(self) -> int:
        """Return the exit status, having read what was printed to the end."""
        status = self.process.wait(timeout=_DEADLINE_S)
        self._reader.join(timeout=_DEADLINE_S)
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.printed.append(line)
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()


def _set_limits(limits: Mapping[int, tuple[int, int]]) -> None:
    for kind, soft_and_hard in limits.items():
        resource.setrlimit(kind, soft_and_hard)


@contextlib.contextmanager
def serving(
    model: Path, state_dir: Path, *flags: str, env: dict[str, str] | None = None, **options: Any
) -> Iterator[Serving]:
    """Serve a model on a free port until the block ends."""
    argv = ["serve", "--model", str(model), "--port", "0", *flags]
    with Serving(argv, state_dir, env, **options) as daemon:
        yield daemon
