"""Finds the control program of MPS and sends commands through it (nvidia-cuda-mps-control(1))."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cotenant.domain.errors import MpsFailed, MpsMissing
from cotenant.hardware.mps.directories import MpsDirectories
from cotenant.programs.run import run_program

PROGRAM: Final = "nvidia-cuda-mps-control"
VARIABLE: Final = "COTENANT_MPS_CONTROL"


def find_program(environ: Mapping[str, str]) -> Path | None:
    """Return the control program that COTENANT_MPS_CONTROL names, or the one on PATH; None without one."""
    found = shutil.which(environ.get(VARIABLE) or PROGRAM, path=environ.get("PATH"))
    return None if found is None else Path(found).absolute()


def no_program(environ: Mapping[str, str]) -> MpsMissing:
    """Return the error for a missing control program, with where it comes from."""
    given = environ.get(VARIABLE)
    return MpsMissing(
        f"{VARIABLE} names {given}, which cannot be run" if given else f"{PROGRAM} is not on the PATH",
        hint="It comes with NVIDIA's driver (in some distributions as nvidia-compute-utils); "
        f"{VARIABLE} can name it.",
    )


@dataclass(frozen=True, slots=True)
class MpsControl:
    """Gives commands to one control daemon, each by a run of the control program. All raise MpsFailed.

    `program` is None where there is none: then each raises MpsMissing.
    Every call takes milliseconds to seconds: not for the thread of an event loop.
    """

    program: Path | None
    directories: MpsDirectories

    def answers(self) -> bool:
        """Whether a daemon answers."""
        try:
            self.ask("get_server_list")
        except MpsFailed:
            return False
        return True

    def servers(self) -> tuple[int, ...]:
        """List the processes that compute for clients, one for each active user."""
        return _numbers(self.ask("get_server_list"))

    def server_status(self, server: int) -> str:
        """Return a server's state as the program names it, such as ACTIVE or FAULT."""
        words = self.ask(f"get_server_status {server}").split()
        return words[-1] if words else "unknown"

    def clients(self, server: int) -> tuple[int, ...]:
        """List the client processes of a server."""
        return _numbers(self.ask(f"get_client_list {server}"))

    def quit(self, within_s: float) -> None:
        """End the daemon and its servers, clients or not, once `within_s` have passed at the latest."""
        whole_s = max(1, round(within_s))
        self.ask(f"quit -t {whole_s}", answers_within_s=whole_s + 2.0)

    def ask(self, command: str, *, answers_within_s: float = 5.0) -> str:
        """Give one command and return what is printed."""
        if self.program is None:
            raise no_program(os.environ)
        env = {**os.environ, **self.directories.variables()}
        done = run_program([str(self.program)], answers_within_s, input_text=f"{command}\n", env=env)
        if done.problem is not None:
            what = f"{self.program} could not give {command!r} to the MPS daemon at {self.directories.pipe}"
            raise MpsFailed(f"{what}: {done.problem}")
        if not done.ok:
            said = done.output.strip() or f"status {done.status}"
            raise MpsFailed(f"the MPS daemon at {self.directories.pipe} refused {command!r}: {said}")
        return done.output


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split() if word.isdecimal())
