"""Waits for an apply, and shows the progress of each service."""

import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from cotenant.cli.client import Daemon
from cotenant.cli.services.tables import apply_lines, apply_sentence, progress_line

STATUS: Final = "/api/system/gpu-config/status"
_POLL_S: Final = 0.4
_UP: Final = "\x1b[{}F\x1b[J"


def follow(daemon: Daemon, started: Mapping[str, Any]) -> int:
    """Show an apply until it ends; return 0 if it succeeded, else 1.

    On a terminal its lines are redrawn in place; elsewhere each step is a line of its own.
    """
    display = _RedrawnDisplay() if sys.stdout.isatty() else _AppendedDisplay()
    apply: Mapping[str, Any] = started
    try:
        while True:
            display.show(apply)
            if not apply["running"]:
                break
            time.sleep(_POLL_S)
            found = daemon.get(STATUS)["apply"]
            if found is None or found["number"] != started["number"]:
                print(f"Apply {started['number']} was replaced by another one.", file=sys.stderr)
                return 1
            apply = found
    except KeyboardInterrupt:
        print("The apply continues; `cotenant services status` shows its progress.", file=sys.stderr)
        raise
    if apply["state"] != "succeeded":
        print("`cotenant services rollback` restores what was applied before.", file=sys.stderr)
        return 1
    if not apply["services"]:
        print("Nothing had to be recreated: every container runs as saved.")
    return 0


class _RedrawnDisplay:
    """Redraws all lines in place."""

    def __init__(self) -> None:
        self._drawn = 0

    def show(self, apply: Mapping[str, Any]) -> None:
        lines = list(apply_lines(apply))
        over = _UP.format(self._drawn) if self._drawn else ""
        print(over + "\n".join(lines), flush=True)
        self._drawn = len(lines)


class _AppendedDisplay:
    """Appends a line for each change."""

    def __init__(self) -> None:
        self._printed: set[str] = set()

    def show(self, apply: Mapping[str, Any]) -> None:
        lines = [progress_line(each) for each in apply["services"]]
        if not apply["running"]:
            lines.append(apply_sentence(apply))
        elif not self._printed:
            lines.insert(0, apply_sentence(apply))
        for line in lines:
            if line not in self._printed:
                self._printed.add(line)
                print(line, flush=True)
