"""Keeps models busy at the same time and measures each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cotenant.benchmark.chat import NoAnswer, chat
from cotenant.benchmark.results import Answered, Load, ModelResult, Phase, Spread
from cotenant.clock import Clock
from cotenant.http_client import Site

_FAILURES_IN_A_ROW: Final = 3
_PROBE_WORDS: Final = 64
_WORDS: Final = ("memory", "model", "card", "share", "token", "layer", "cache", "slot")


@dataclass(slots=True)
class _Lane:
    """One model's traffic in a phase."""

    model: str
    answers: list[Answered] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    in_a_row: int = 0

    def settled(self, load: Load) -> bool:
        return self.given_up or len(self.answers) + len(self.failures) >= load.requests

    @property
    def given_up(self) -> bool:
        return self.in_a_row >= _FAILURES_IN_A_ROW


@dataclass(slots=True)
class Traffic:
    """Asks one address, and remembers how many tokens each model makes of a word."""

    site: Site
    load: Load
    clock: Clock
    step: Callable[[], None] = lambda: None
    arrivals: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _tokens_per_word: dict[str, float] = field(default_factory=dict)
    _asked: int = 0

    async def warm_up(self, model: str) -> Answered:
        """Have a model loaded, and learn how long its tokens are. Raises NoAnswer."""
        words = _PROBE_WORDS if model not in self._tokens_per_word else 1
        answer = await chat(
            self.site, self.clock, self._payload(model, words, 1), timeout_s=self.load.timeout_s
        )
        if words > 1:
            self._tokens_per_word[model] = max(1.0, (answer.prompt_tokens or words) / words)
        return answer

    async def phase(self, models: Sequence[str], alone: Mapping[str, float]) -> Phase:
        """Keep these models busy until each has answered all its requests.

        Whoever has answered them goes on being asked until all have, since the others are to be measured
        beside it; what is then still on its way is cut off. `alone` are rates of models by themselves.
        """
        lanes = [_Lane(model) for model in models]
        finished = asyncio.Event()
        begun_at = self.clock.now()
        async with asyncio.TaskGroup() as group:
            workers = [
                group.create_task(self._work(lane, lanes, finished))
                for lane in lanes
                for _ in range(self.load.concurrency)
            ]
            await finished.wait()
            for worker in workers:
                worker.cancel()
        ended_at = self.clock.now()
        results = tuple(self._result(lane, ended_at - begun_at, alone.get(lane.model)) for lane in lanes)
        return Phase(tuple(models), begun_at, ended_at, results)

    async def _work(self, lane: _Lane, lanes: Sequence[_Lane], finished: asyncio.Event) -> None:
        while not finished.is_set() and not lane.given_up:
            first = not lane.settled(self.load)
            try:
                lane.answers.append(await self._ask(lane))
                lane.in_a_row = 0
            except NoAnswer as error:
                lane.failures.append(str(error))
                lane.in_a_row += 1
            if first:
                self.step()
            if all(other.settled(self.load) for other in lanes):
                finished.set()

    async def _ask(self, lane: _Lane) -> Answered:
        words = max(1, round(self.load.prompt_tokens / self._tokens_per_word.get(lane.model, 1.0)))
        payload = self._payload(lane.model, words, self.load.max_tokens)
        return await chat(
            self.site, self.clock, payload, timeout_s=self.load.timeout_s, arrived=lane.arrivals.append
        )

    def _payload(self, model: str, words: int, max_tokens: int) -> dict[str, Any]:
        # Each prompt begins differently: a server that keeps the last prompt's cache would skip it otherwise.
        self._asked += 1
        text = " ".join((str(self._asked), *(_WORDS[(self._asked + n) % len(_WORDS)] for n in range(words))))
        payload = {"model": model, "max_tokens": max_tokens, "messages": [{"role": "user", "content": text}]}
        return {**payload, "ignore_eos": True} if self.load.exact else payload

    def _result(self, lane: _Lane, seconds: float, alone: float | None) -> ModelResult:
        answers = lane.answers
        pieces = sum(len(answer.arrivals) for answer in answers)
        # A piece of a stream may hold several tokens, or half of one.
        weight = sum(answer.tokens for answer in answers) / pieces if pieces else 1.0
        rate = len(lane.arrivals) * weight / seconds
        self.arrivals.setdefault(lane.model, []).extend((at, weight) for at in lane.arrivals)
        return ModelResult(
            lane.model,
            rate,
            len(answers),
            len(lane.failures),
            Spread.of([answer.first_token_s for answer in answers]),
            Spread.of([each for answer in answers if (each := answer.per_token_s) is not None]),
            Spread.of([answer.total_s for answer in answers]),
            rate / alone if alone else None,
            all(answer.usage for answer in answers),
            lane.failures[-1] if lane.failures else None,
        )
