"""`cotenant`, with the laws checked after every step of the scheduler; a broken one ends it at once.

Run as a script with the command's arguments; it says at its end how often it looked.
"""

import atexit
import os
import sys
from collections.abc import Callable
from typing import Any

from cotenant.cli.main import main
from cotenant.scheduling import invariants
from cotenant.scheduling.scheduler import Scheduler

BROKEN = 70
_steps = 0


def _checked(step: Callable[..., Any]) -> Callable[..., Any]:
    def then_checked(scheduler: Scheduler, *arguments: Any, **named: Any) -> Any:
        global _steps
        done = step(scheduler, *arguments, **named)
        _steps += 1
        try:
            invariants.check(scheduler.state)
        except invariants.InvariantViolation as broken:
            print(f"broken after step {_steps}: {broken}", file=sys.stderr, flush=True)
            os._exit(BROKEN)
        return done

    return then_checked


if __name__ == "__main__":
    for name in ("handle", "release", "try_grant"):
        setattr(Scheduler, name, _checked(getattr(Scheduler, name)))
    atexit.register(lambda: print(f"the laws held after each of {_steps} steps", flush=True))
    sys.exit(main())
