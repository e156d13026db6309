"""Keeps models busy at the same time and measures each."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cotenant.benchmark.chat import ChatFailed, chat
from cotenant.benchmark.results import Completion, Load, ModelResult, Percentiles, Phase
from cotenant.clock import Clock
from cotenant.domain.engines import Endpoint

_WORDS: Final = ("memory", "model", "card", "share", "token", "layer", "cache", "slot")


@dataclass(slots=True)
class _ModelLoad:
    """One model's requests in a phase."""

    model: str
    answers: list[Completion] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    in_a_row: int = 0

    def settled(self, load: Load) -> bool:
        return self.given_up or len(self.answers) + len(self.failures) >= load.requests

    @property
    def given_up(self) -> bool:
        return self.in_a_row >= 3


@dataclass(slots=True)
class LoadGenerator:
    """Sends requests to one address, and learns the tokens per word of each model."""

    endpoint: Endpoint
    load: Load
    clock: Clock
    step: Callable[[], None]
    arrivals: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _tokens_per_word: dict[str, float] = field(default_factory=dict)
    _sent: int = 0

    async def warm_up(self, model: str) -> None:
        """Load a model with a short request, and learn its tokens per word. Raises ChatFailed."""
        words = 64 if model not in self._tokens_per_word else 1
        answer = await self._chat(model, words, 1)
        if words > 1:
            self._tokens_per_word[model] = max(1.0, (answer.prompt_tokens or words) / words)

    async def phase(self, models: Sequence[str], alone: Mapping[str, float]) -> Phase:
        """Keep these models busy until each has answered all its requests.

        A model that has finished keeps getting requests until all have, so that the load stays the same; open
        requests are then cancelled. `alone` are the rates of each model by itself.
        """
        loads = [_ModelLoad(model) for model in models]
        finished = asyncio.Event()
        begun_at = self.clock.now()
        async with asyncio.TaskGroup() as group:
            workers = [
                group.create_task(self._work(own, loads, finished))
                for own in loads
                for _ in range(self.load.concurrency)
            ]
            await finished.wait()
            for worker in workers:
                worker.cancel()
        ended_at = self.clock.now()
        results = tuple(self._result(own, ended_at - begun_at, alone.get(own.model)) for own in loads)
        return Phase(tuple(models), begun_at, ended_at, results)

    async def _work(self, own: _ModelLoad, loads: Sequence[_ModelLoad], finished: asyncio.Event) -> None:
        words = max(1, round(self.load.prompt_tokens / self._tokens_per_word.get(own.model, 1.0)))
        while not finished.is_set() and not own.given_up:
            first = not own.settled(self.load)
            try:
                own.answers.append(
                    await self._chat(own.model, words, self.load.max_tokens, own.arrivals.append)
                )
                own.in_a_row = 0
            except ChatFailed as error:
                own.failures.append(str(error))
                own.in_a_row += 1
            if first:
                self.step()
            if all(other.settled(self.load) for other in loads):
                finished.set()

    async def _chat(
        self, model: str, words: int, max_tokens: int, arrived: Callable[[float], None] = lambda _at: None
    ) -> Completion:
        # Each prompt begins differently, so that no server reuses the cache of the last prompt.
        self._sent += 1
        text = " ".join((str(self._sent), *(_WORDS[(self._sent + n) % len(_WORDS)] for n in range(words))))
        payload = {"model": model, "max_tokens": max_tokens, "messages": [{"role": "user", "content": text}]}
        if self.load.exact:
            payload["ignore_eos"] = True
        return await chat(self.endpoint, self.clock, payload, self.load.timeout_s, arrived)

    def _result(self, own: _ModelLoad, seconds: float, alone: float | None) -> ModelResult:
        answers = own.answers
        pieces = sum(len(answer.arrivals) for answer in answers)
        # A chunk may hold several tokens, or part of one.
        weight = sum(answer.tokens for answer in answers) / pieces if pieces else 1.0
        rate = len(own.arrivals) * weight / seconds
        self.arrivals.setdefault(own.model, []).extend((at, weight) for at in own.arrivals)
        return ModelResult(
            own.model,
            rate,
            len(answers),
            len(own.failures),
            Percentiles.of([answer.first_token_s for answer in answers]),
            Percentiles.of([each for answer in answers if (each := answer.per_token_s) is not None]),
            Percentiles.of([answer.total_s for answer in answers]),
            rate / alone if alone else None,
            all(answer.usage for answer in answers),
            own.failures[-1] if own.failures else None,
        )
