"""Closed-loop clients: people and agents who ask again only after their answer, unlike a recorded log."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from cotenant.simulation.models import Request

_SPREAD: Final = 0.8
_PAUSE_THINKS: Final = 5.0
"""Between bursts and between tasks, people are away for so many times their usual think time."""
_BURST: Final = 6.0
_STEPS: Final = 8.0
_STEP_S: Final = 0.1
_EMBEDDING_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Turn:
    """What a client asks next, `think_s` after its last answer. The arrival of the request is set then."""

    think_s: float
    request: Request


def steady(models: Sequence[str], rng: Random, think_s: float) -> Iterator[Turn]:
    """Ask one model again and again."""
    model = rng.choice(models)
    while True:
        yield Turn(_drawn(rng, think_s), _chat(model, rng))


def alternating(models: Sequence[str], rng: Random, think_s: float) -> Iterator[Turn]:
    """Ask two models in turn."""
    pair = _some(models, rng, 2)
    while True:
        for model in pair:
            yield Turn(_drawn(rng, think_s), _chat(model, rng))


def bursts(models: Sequence[str], rng: Random, think_s: float) -> Iterator[Turn]:
    """Ask one of four models about six times, then another one after a pause; some of them more often."""
    own = _some(models, rng, 4)
    weights = [1 / (rank + 1) for rank in range(len(own))]
    pause = 1.0
    while True:
        (model,) = rng.choices(own, weights)
        for _ in range(_geometric(rng, _BURST)):
            yield Turn(_drawn(rng, pause * think_s), _chat(model, rng))
            pause = 1.0
        pause = _PAUSE_THINKS


def agent(models: Sequence[str], rng: Random, think_s: float) -> Iterator[Turn]:
    """Do tasks of about eight steps without a pause, each an embedding, of the last model, and a chat."""
    chat, embedding = rng.choice(models[:-1] or models), models[-1]
    while True:
        wait_s = _drawn(rng, _PAUSE_THINKS * think_s)
        for _ in range(_geometric(rng, _STEPS)):
            yield Turn(wait_s, Request(0.0, embedding, rng.randint(50, 1000), 1))
            yield Turn(_EMBEDDING_S, _chat(chat, rng))
            wait_s = _STEP_S


HABITS: Final[Mapping[str, Callable[[Sequence[str], Random, float], Iterator[Turn]]]] = {
    "steady": steady,
    "alternating": alternating,
    "bursts": bursts,
    "agent": agent,
}
"""What a client asks for, without end, of which models; its think times have the median `think_s`."""


@dataclass(frozen=True, slots=True)
class Clients:
    """How many closed-loop clients of each habit there are; they ask nothing after `until`."""

    counts: Mapping[str, int]
    think_s: float
    until: float

    def draw(self, models: Sequence[str], seed: int) -> Iterator[Iterator[Turn]]:
        """Yield the turns of each client, which do not depend on when it is answered.

        `models` are the largest first: agents embed with the smallest.
        """
        for habit, count in self.counts.items():
            for number in range(count):
                yield HABITS[habit](models, Random(f"{seed} {habit} {number}"), self.think_s)


def _some(models: Sequence[str], rng: Random, count: int) -> list[str]:
    return rng.sample(models, min(count, len(models)))


def _chat(model: str, rng: Random) -> Request:
    return Request(0.0, model, round(_drawn(rng, 100.0)) + 1, min(2000, round(_drawn(rng, 150.0)) + 1))


def _drawn(rng: Random, median: float) -> float:
    return median * rng.lognormvariate(0.0, _SPREAD)


def _geometric(rng: Random, mean: float) -> int:
    """Draw a number of at least 1."""
    return 1 + int(math.log(1 - rng.random()) / math.log(1 - 1 / mean))
