"""Supervises a compose command, also after the daemon has died.

As a script (`python -I -S compose_supervisor.py LOCK_FD LIMIT_S PROGRAM ARG…`) it runs the program in a
process group of its own and exits with the program's status. It holds the lock until then. The program must
not inherit the lock: podman passes what it inherits to the containers' monitors, which keep running. At the
limit the supervisor kills the group.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

AT_LIMIT: Final = 240
CANNOT_START: Final = 241
_GRACE_S: Final = 3.0
_POLL_S: Final = 0.02


def _run(limit_s: float, argv: Sequence[str]) -> int:
    try:
        program = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        os.write(2, f"Error: {argv[0]} cannot be started: {error.strerror}\n".encode())
        return CANNOT_START
    try:
        status = program.wait(limit_s)
    except subprocess.TimeoutExpired:
        _kill(program)
        return AT_LIMIT
    return status if status >= 0 else 128 - status


def _kill(program: subprocess.Popen[bytes]) -> None:
    os.killpg(program.pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    # WNOWAIT leaves it unreaped, so its id is not reused before the second signal.
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, program.pid, options) is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    # Also if the leader has ended: its children may still run.
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()


if __name__ == "__main__":
    os.set_inheritable(int(sys.argv[1]), False)
    sys.exit(_run(float(sys.argv[2]), sys.argv[3:]))
