"""Sends commands through the control program of MPS (nvidia-cuda-mps-control(1))."""

import os
from dataclasses import dataclass
from pathlib import Path

from cotenant.domain.errors import MpsFailed
from cotenant.hardware.mps.directories import MpsDirectories
from cotenant.hardware.mps.program import no_program
from cotenant.programs.run import run_program


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
