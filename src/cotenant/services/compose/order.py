"""The order in which services are recreated, so that memory is freed before it is needed. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.services.model import Assignment

_EVERYTHING_GB: Final = 1e9


@dataclass(frozen=True, slots=True)
class Move:
    """A service to recreate: the assignment of its present container, and the new one.

    `before` is None where it has no container that uses a GPU, or one that is not pinned.
    """

    service: str
    before: Assignment | None
    after: Assignment | None
    latency_critical: bool = False

    @property
    def frees(self) -> frozenset[int]:
        """The GPUs that have more free memory afterwards: it leaves them, or takes less of them."""
        after = _gpus(self.after)
        return frozenset(gpu for gpu, part in _gpus(self.before).items() if after.get(gpu, 0.0) < part)

    @property
    def needs(self) -> frozenset[int]:
        """The GPUs that have less free memory afterwards: it comes to them, or takes more of them."""
        before = _gpus(self.before)
        return frozenset(gpu for gpu, part in _gpus(self.after).items() if before.get(gpu, 0.0) < part)


@dataclass(frozen=True, slots=True)
class Step:
    """The recreation of one service, after the memory of all services in `after` is free.

    A service's memory is free when it has been recreated or stopped. `stop_first` stops it before anything
    else, because it is in a cycle of services that wait for each other.
    """

    service: str
    after: tuple[str, ...] = ()
    stop_first: bool = False


def ordered(moves: Sequence[Move]) -> tuple[Step, ...]:
    """Return a step for each move. No step waits for a later one, unless that one is stopped first.

    A service that needs memory on a GPU waits for all that free some there. Services that would wait for each
    other in a cycle, such as two that swap GPUs, cannot all keep running: one of the cycle is stopped, a
    service that is not latency-critical if there is one. The same moves always give the same steps.
    """
    waits = {
        move.service: tuple(
            other.service for other in moves if other is not move and other.frees & move.needs
        )
        for move in moves
    }
    by_name = {move.service: move for move in moves}
    freed: set[str] = set()
    stopped: set[str] = set()
    done: list[str] = []
    while len(done) < len(moves):
        left = [move for move in moves if move.service not in done]
        ready = [move for move in left if set(waits[move.service]) <= freed]
        if not ready:
            cycle = _cycle(left[0].service, waits, freed)
            victim = min(cycle, key=lambda name: (by_name[name].latency_critical, cycle.index(name)))
            stopped.add(victim)
            freed.add(victim)
            continue
        # Services that free memory come first, so that as few as possible have to wait.
        chosen = min(ready, key=lambda move: (not move.frees, left.index(move)))
        done.append(chosen.service)
        freed.add(chosen.service)
    return tuple(Step(name, waits[name], name in stopped) for name in done)


def _cycle(start: str, waits: Mapping[str, Sequence[str]], freed: set[str]) -> list[str]:
    """Follow what `start` waits for until a service repeats; the services from there on are the cycle."""
    path = [start]
    while True:
        following = next(name for name in waits[path[-1]] if name not in freed)
        if following in path:
            return path[path.index(following) :]
        path.append(following)


def _gpus(assignment: Assignment | None) -> Mapping[int, float]:
    """Return the GPUs that a container uses, and how many GB it may take of each.

    One that sees every GPU starts with the first, as CUDA does. Without a budget it may take everything.
    """
    indices = (assignment.indices if assignment is not None else ()) or (0,)
    budget = None if assignment is None else assignment.vram_budget_gb
    return dict.fromkeys(indices, (_EVERYTHING_GB if budget is None else budget) / len(indices))
