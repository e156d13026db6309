"""What an agent and its engines must not inherit from whatever started the agent."""

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

_FOREIGN_PREFIX: Final = "RAY_"
"""Among them is `RAY_AUTH_TOKEN`, the key to a whole cluster."""
_FOREIGN: Final = ("OMP_NUM_THREADS", "PYTHONBREAKPOINT", "PYTHONUNBUFFERED")
_OOM_SCORE: Final = Path("/proc/self/oom_score_adj")


def clean(environ: MutableMapping[str, str] = os.environ) -> tuple[str, ...]:
    """Drop what a Ray worker sets, and take back its niceness and its OOM score: all engines inherit these.

    Return what could not be taken back, in sentences: only root may.
    """
    for name in [name for name in environ if name.startswith(_FOREIGN_PREFIX) or name in _FOREIGN]:
        del environ[name]
    problems = []
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness > 0:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        except PermissionError:
            problems.append(
                f"engines run with niceness {niceness}, as what started this agent, and only root can change "
                "that: start Ray with RAY_worker_niceness=0"
            )
    score = int(_OOM_SCORE.read_text())
    if score > 0:
        try:
            _OOM_SCORE.write_text("0")
        except OSError:
            problems.append(
                f"the kernel kills engines among the first when memory is short (oom_score_adj {score}), and "
                "only root can change that: start Ray with RAY_worker_oom_score_adjustment=0"
            )
    return tuple(problems)
