"""A whole benchmark: each model alone, the first two together, the first three; then what loading costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from cotenant.benchmark.chat import NoAnswer
from cotenant.benchmark.cotenant_api import Control, Unanswered, chat_models
from cotenant.benchmark.load_generator import Traffic
from cotenant.benchmark.results import Load, MemorySample, Phase, Report, Wait
from cotenant.clock import Clock
from cotenant.http_client import Site

_MOST_TOGETHER: Final = 3

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many steps of it are done, and of how many."""


class NothingToMeasure(Exception):
    """No model at the address can be measured; the message says why."""


class SinceStart:
    """Another clock, from zero."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._origin = clock.now()

    def now(self) -> float:
        """Return seconds since it was made."""
        return self._clock.now() - self._origin


async def run_course(
    site: Site,
    models: Sequence[str],
    load: Load,
    clock: Clock,
    progress: Progress,
    *,
    keep_loaded: bool = False,
) -> Report:
    """Measure these models, or all that the address lists, and leave them loaded or not as they were.

    With `keep_loaded` none is unloaded, so that nothing is told of cold starts. Raises NothingToMeasure, or
    OSError where nothing answers.
    """
    control = await Control.find(site, load.timeout_s)
    try:
        chosen = list(dict.fromkeys(models)) or await chat_models(site)
    except Unanswered as error:
        raise NothingToMeasure(f"the models of {site.url} cannot be listed: {error}") from None
    if not chosen:
        raise NothingToMeasure(f"{site.url} lists no model that chats")
    course = _Course(site, chosen, load, SinceStart(clock), progress, control)
    try:
        return await course.run(keep_loaded)
    except Unanswered as error:
        raise NothingToMeasure(f"{site.url} does not tell of its models any more: {error}") from None


class _Course:
    def __init__(
        self,
        site: Site,
        models: list[str],
        load: Load,
        clock: Clock,
        progress: Progress,
        control: Control | None,
    ) -> None:
        self._site = site
        self._models = models
        self._load = load
        self._clock = clock
        self._progress = progress
        self._control = control
        self._what, self._done, self._of = "", 0, 1
        self._traffic = Traffic(site, load, clock, self._step)
        self._left_out: list[str] = []
        self._phases: list[Phase] = []

    async def run(self, keep_loaded: bool) -> Report:
        memory: list[MemorySample] = []
        control = self._control
        before = await control.models() if control else {}
        capacity = await control.capacity_bytes() if control else None
        async with control.sampled(memory, self._clock) if control else contextlib.nullcontext():
            await self._under_load()
            waits: list[Wait] = []
            if control is None:
                self._left_out.append("cold start and swap: the address has no way to unload a model")
            elif not keep_loaded:
                try:
                    waits = await self._loading(control, before)
                finally:
                    await self._as_before(control, before)
        return Report(
            self._site.url,
            self._load,
            tuple(self._phases),
            tuple(waits),
            tuple(memory),
            {model: tuple(sorted(times)) for model, times in self._traffic.arrivals.items()},
            tuple(self._left_out),
            capacity,
        )

    async def _under_load(self) -> None:
        alone: dict[str, float] = {}
        for model in self._models:
            phase = await self._phase((model,), alone)
            if phase is not None and phase.tokens_per_s:
                alone[model] = phase.tokens_per_s
        if not alone:
            raise NothingToMeasure("; ".join(self._left_out) or "no model answered")
        for count in range(2, min(_MOST_TOGETHER, len(alone)) + 1):
            await self._phase(tuple(alone)[:count], alone)

    async def _phase(self, models: tuple[str, ...], alone: Mapping[str, float]) -> Phase | None:
        """Load these models, measure them together, and keep the figures; None where that cannot be."""
        what = " + ".join(models)
        self._begin(f"{what}: loading", 1)
        for model in models:
            try:
                await self._traffic.warm_up(model)
            except NoAnswer as error:
                beside = f"{what}: " if len(models) > 1 else ""
                self._left_out.append(f"{beside}{model} does not answer: {error}")
                return None
        loads = await self._loads(models)
        if loads is None:
            self._left_out.append(f"{what}: they do not fit together, so that one unloads another")
            return None
        self._begin(what, self._load.requests * len(models))
        phase = await self._traffic.phase(models, alone)
        if await self._loads(models) != loads:
            phase = replace(phase, note="a model was unloaded meanwhile, so that its loading is counted")
        self._phases.append(phase)
        for result in phase.results:
            if result.failure is not None:
                failed = f"{result.failures} requests for {result.model} failed"
                self._left_out.append(f"{what}: {failed}, the last: {result.failure}")
        return phase

    async def _loads(self, models: tuple[str, ...]) -> list[object] | None:
        """Return how often each has been loaded, if all are loaded now; nothing where that is not told."""
        if self._control is None:
            return []
        told = await self._control.models()
        if any(told.get(model, {}).get("state") not in ("ready", "draining") for model in models):
            return None
        return [told[model].get("loads") for model in models]

    async def _loading(self, control: Control, before: Mapping[str, Mapping[str, object]]) -> list[Wait]:
        movable = [
            model
            for model in dict.fromkeys(model for phase in self._phases for model in phase.models)
            if not before.get(model, {}).get("pinned")
        ]
        swaps = [*zip(movable, (*movable[1:], *movable[:1]), strict=True)] if len(movable) > 1 else []
        waits: list[Wait] = []
        self._begin("cold start and swap", len(movable) + len(swaps))
        for model in movable:
            if (seconds := await self._wait(control, model, None)) is not None:
                waits.append(Wait(model, seconds))
        for leaving, model in swaps:
            if (seconds := await self._wait(control, model, leaving)) is not None:
                waits.append(Wait(model, seconds, leaving))
        return waits

    async def _wait(self, control: Control, model: str, leaving: str | None) -> float | None:
        """Return what a cold model's first token takes; with `leaving`, that one is unloaded first."""
        try:
            await control.order(model, "unload")
            if leaving is not None:
                await control.order(leaving, "load")
            began = self._clock.now()
            if leaving is not None:
                await control.order(leaving, "unload")
            await self._traffic.warm_up(model)
            return self._clock.now() - began
        except (NoAnswer, Unanswered, OSError) as error:
            self._left_out.append(f"loading {model}: {error}")
            return None
        finally:
            self._step()

    async def _as_before(self, control: Control, before: Mapping[str, Mapping[str, object]]) -> None:
        for model in self._models:
            was = before.get(model)
            if was is None or was.get("pinned"):
                continue
            what = "load" if was.get("state") in ("ready", "loading") else "unload"
            try:
                await control.order(model, what)
            except (Unanswered, OSError) as error:
                self._left_out.append(f"{model} could not be left as it was: {error}")

    def _begin(self, what: str, of: int) -> None:
        self._what, self._done, self._of = what, 0, of
        self._progress(what, 0, of)

    def _step(self) -> None:
        self._done = min(self._of, self._done + 1)
        self._progress(self._what, self._done, self._of)
