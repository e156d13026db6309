"""The phases of a benchmark: each model alone, the first two, the first three; then cold starts and swaps."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cotenant.benchmark.chat import ChatFailed
from cotenant.benchmark.cotenant_api import ApiFailed, CotenantApi, chat_models
from cotenant.benchmark.load_generator import LoadGenerator
from cotenant.benchmark.results import Load, MemorySample, Phase, Report, Wait
from cotenant.clock import Clock
from cotenant.domain.engines import Endpoint

Progress = Callable[[str, int, int], None]
"""Called with the current work, its number of finished steps, and of all steps."""


class NothingToMeasure(Exception):
    """No model at the address can be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class RelativeClock:
    """A clock that starts at zero at `origin`."""

    clock: Clock
    origin: float

    def now(self) -> float:
        """Return the seconds since the origin."""
        return self.clock.now() - self.origin


async def run_benchmark(
    endpoint: Endpoint,
    models: Sequence[str],
    load: Load,
    clock: Clock,
    progress: Progress,
    *,
    keep_loaded: bool = False,
) -> Report:
    """Measure these models, or all that the address lists; afterwards each is loaded or unloaded as before.

    `keep_loaded` unloads no model, so that cold starts are not measured. Raises NothingToMeasure, or
    OSError where nothing answers.
    """
    api, tried = None, CotenantApi(endpoint, load.timeout_s)
    with contextlib.suppress(ApiFailed):  # which other servers cause
        await tried.models()
        api = tried
    try:
        chosen = list(dict.fromkeys(models)) or await chat_models(endpoint)
    except ApiFailed as error:
        raise NothingToMeasure(f"the models of {endpoint.url} cannot be listed: {error}") from None
    if not chosen:
        raise NothingToMeasure(f"{endpoint.url} lists no chat model")
    run = BenchmarkRun(endpoint, chosen, load, RelativeClock(clock, clock.now()), progress, api)
    try:
        return await run.run(keep_loaded)
    except ApiFailed as error:
        raise NothingToMeasure(f"{endpoint.url} no longer reports its models: {error}") from None


@dataclass(slots=True)
class BenchmarkRun:
    """A benchmark in progress; `api` is Cotenant's own, None at other servers."""

    endpoint: Endpoint
    models: list[str]
    load: Load
    clock: Clock
    progress: Progress
    api: CotenantApi | None
    generator: LoadGenerator = field(init=False)
    left_out: list[str] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    _step_name: str = ""
    _done: int = 0
    _steps: int = 1

    def __post_init__(self) -> None:
        self.generator = LoadGenerator(self.endpoint, self.load, self.clock, self._step)

    async def run(self, keep_loaded: bool) -> Report:
        """Measure everything. Raises NothingToMeasure, ApiFailed or OSError."""
        memory: list[MemorySample] = []
        api = self.api
        before = await api.models() if api else {}
        capacity = await api.capacity_bytes() if api else None
        async with api.sampled(memory, self.clock) if api else contextlib.nullcontext():
            await self._under_load()
            waits: list[Wait] = []
            if api is None:
                self.left_out.append("cold start and swap: the address has no way to unload a model")
            elif not keep_loaded:
                try:
                    waits = await self._loading(api, before)
                finally:
                    await self._restore(api, before)
        return Report(
            self.endpoint.url,
            self.load,
            tuple(self.phases),
            tuple(waits),
            tuple(memory),
            {model: tuple(sorted(times)) for model, times in self.generator.arrivals.items()},
            tuple(self.left_out),
            capacity,
        )

    async def _under_load(self) -> None:
        alone: dict[str, float] = {}
        for model in self.models:
            phase = await self._phase((model,), alone)
            if phase is not None and phase.tokens_per_s:
                alone[model] = phase.tokens_per_s
        if not alone:
            raise NothingToMeasure("; ".join(self.left_out) or "no model answered")
        for count in range(2, min(3, len(alone)) + 1):
            await self._phase(tuple(alone)[:count], alone)

    async def _phase(self, models: tuple[str, ...], alone: Mapping[str, float]) -> Phase | None:
        """Load these models and measure them together. Returns None if that is not possible."""
        what = " + ".join(models)
        self._begin(f"{what}: loading", 1)
        for model in models:
            try:
                await self.generator.warm_up(model)
            except ChatFailed as error:
                prefix = f"{what}: " if len(models) > 1 else ""
                self.left_out.append(f"{prefix}{model} does not answer: {error}")
                return None
        loads = await self._loads(models)
        if loads is None:
            self.left_out.append(f"{what}: they do not fit together: one unloads another")
            return None
        self._begin(what, self.load.requests * len(models))
        phase = await self.generator.phase(models, alone)
        if await self._loads(models) != loads:
            phase = replace(phase, note="a model was unloaded during the phase: its reload is included")
        self.phases.append(phase)
        for result in phase.results:
            if result.failure is not None:
                failed = f"{result.failures} requests for {result.model} failed"
                self.left_out.append(f"{what}: {failed}, the last: {result.failure}")
        return phase

    async def _loads(self, models: tuple[str, ...]) -> list[object] | None:
        """Return how often each was loaded; None if one is not loaded now, empty if unknown."""
        if self.api is None:
            return []
        statuses = await self.api.models()
        if any(statuses.get(model, {}).get("state") not in ("ready", "draining") for model in models):
            return None
        return [statuses[model].get("loads") for model in models]

    async def _loading(self, api: CotenantApi, before: Mapping[str, Mapping[str, object]]) -> list[Wait]:
        models = dict.fromkeys(model for phase in self.phases for model in phase.models)
        movable = [model for model in models if not before.get(model, {}).get("pinned")]
        loads: list[tuple[str, str | None]] = [(model, None) for model in movable]
        if len(movable) > 1:
            loads += zip((*movable[1:], movable[0]), movable, strict=True)
        self._begin("cold start and swap", len(loads))
        waits = [await self._wait(api, model, leaving) for model, leaving in loads]
        return [wait for wait in waits if wait is not None]

    async def _wait(self, api: CotenantApi, model: str, leaving: str | None) -> Wait | None:
        """Measure the time to a cold model's first token; `leaving` is unloaded first. None if it fails."""
        try:
            await api.request(model, "unload")
            if leaving is not None:
                await api.request(leaving, "load")
            began = self.clock.now()
            if leaving is not None:
                await api.request(leaving, "unload")
            await self.generator.warm_up(model)
            return Wait(model, self.clock.now() - began, leaving)
        except (ChatFailed, ApiFailed, OSError) as error:
            self.left_out.append(f"loading {model}: {error}")
            return None
        finally:
            self._step()

    async def _restore(self, api: CotenantApi, before: Mapping[str, Mapping[str, object]]) -> None:
        for model in self.models:
            was = before.get(model)
            if was is None or was.get("pinned"):
                continue
            what = "load" if was.get("state") in ("ready", "loading") else "unload"
            try:
                await api.request(model, what)
            except (ApiFailed, OSError) as error:
                self.left_out.append(f"{model} could not be restored: {error}")

    def _begin(self, what: str, of: int) -> None:
        self._step_name, self._done, self._steps = what, 0, of
        self.progress(what, 0, of)

    def _step(self) -> None:
        self._done = min(self._steps, self._done + 1)
        self.progress(self._step_name, self._done, self._steps)
