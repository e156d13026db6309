"""vLLM's server on this machine: starts it, queries it, puts it to sleep and wakes it."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Final

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import EngineBuild, EngineEnd
from cotenant.domain.errors import BadRecipe
from cotenant.engines.base.health import first_of
from cotenant.engines.base.host_inputs import HostInputs
from cotenant.engines.base.server import ServerEngine, ServerHost, Started
from cotenant.engines.launch.plan import LaunchPlan
from cotenant.engines.vllm.arguments import MIDDLEWARE, sleep_level, vllm_argv, vllm_environment
from cotenant.engines.vllm.release import check_release, installed_release
from cotenant.engines.vllm.sleep import VllmSleep
from cotenant.http.client import probe_ok
from cotenant.interfaces import Engine, EngineOrder

_METRICS_TIMEOUT_S: Final = 2.0
_RUNNING: Final = re.compile(
    rb"^vllm:num_requests_(?:running|waiting)(?:\{[^\n]*\})? ([0-9.e+]+)", re.MULTILINE
)

_log = logging.getLogger(__name__)


class VllmHost(ServerHost):
    """Starts vLLM engines, or wakes those that sleep.

    The engine of a model with `sleep:` sleeps instead of ending. It is woken for the same model, recipe and
    devices. It is ended by `end_sleeping`, or if a sleep or a wake fails its check. On `exclusive` cards no
    engine sleeps, since it would block its card. Once `sleeps` is false, all engines are ended.
    """

    def __init__(self, inputs: HostInputs) -> None:
        super().__init__(inputs)
        self._parked: dict[str, VllmEngine] = {}
        self._ending: set[VllmEngine] = set()
        self.sleeps = True

    async def start(self, order: EngineOrder) -> Engine:
        """Start loading, or wake. Raises BadRecipe or EngineMissing before anything runs."""
        program = order.options.command
        if not program or order.model_path is None:
            raise BadRecipe(f"{order.name} has no folder that vLLM can read", hint="Give it a `path:`.")
        parked = self._parked.pop(order.name, None)
        if parked is not None:
            if _same(parked.order, order) and not parked.ended:
                parked.mark_waking()
                return parked
            await self._end(parked)
        release = None if order.launch.image else installed_release(program)
        check_release(release)

        def plan_for(port: int) -> LaunchPlan:
            argv = (*program, *vllm_argv(order, port))
            plan = LaunchPlan.of(order, argv, port, env=vllm_environment(order), key_variable="VLLM_API_KEY")
            return replace(plan, reads=(*plan.reads, MIDDLEWARE))

        started = await self._start(order, plan_for)
        level = 0 if started.exclusive else sleep_level(order)
        sleeper = VllmSleep(level, order, self._inputs.meter) if level else None
        executable = shutil.which(program[0]) or program[0]
        build = EngineBuild(EngineKind.VLLM, EngineKind.VLLM, executable, release or "unknown")
        return VllmEngine(started, build, self, sleeper)

    def park(self, engine: VllmEngine) -> None:
        """Keep a sleeping engine for the next load of its model."""
        self._parked[engine.order.name] = engine

    @property
    def asleep(self) -> Mapping[str, int]:
        """The process id of each sleeping model, until its engine has ended."""
        return {engine.order.name: engine.pid for engine in (*self._ending, *self._parked.values())}

    async def end_sleeping(self, keep: Set[str] = frozenset()) -> Sequence[str]:
        """End the sleeping engines of models that are not in `keep`, and return their names."""
        names = [name for name in self._parked if name not in keep]
        await self._end(*[self._parked.pop(name) for name in names])
        return names

    async def _end(self, *engines: VllmEngine) -> None:
        self._ending.update(engines)
        try:
            await asyncio.gather(*(engine.end(0) for engine in engines))
        finally:
            self._ending.difference_update(engines)


class VllmEngine(ServerEngine):
    """One vLLM server. With a `sleeper`, `stop` puts it to sleep, or ends it if that fails."""

    # Its server shuts down with status 0 when the process with the model has died.
    _dies_with_status_0 = True

    def __init__(
        self, started: Started, build: EngineBuild, host: VllmHost, sleeper: VllmSleep | None
    ) -> None:
        # It refuses any name but its own, such as an alias.
        super().__init__(started, build, model=started.order.name)
        self._host = host
        self._sleeper = sleeper
        self._was_ready = False
        self._waking = False
        self._asleep = asyncio.Event()

    def mark_waking(self) -> None:
        """Count it as loading again: `wait_ready` wakes it."""
        self._asleep.clear()
        self._waking = True
        self._stopping = False

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when it answers; a sleeping engine is woken and tested first.

        Raises as for any server; an engine that does not wake has ended by then.
        """
        if self._waking and self._sleeper is not None:
            self._waking = False
            try:
                async with asyncio.timeout(timeout_s):
                    await self._sleeper.wake(self.endpoint)
            except BaseException:
                await self.end(0)
                raise
        await super().wait_ready(timeout_s)
        self._was_ready = True

    async def wait_exit(self) -> EngineEnd:
        """Return when the process has ended or sleeps, with how and why."""
        await first_of(self._process.wait(), self._asleep.wait())
        if self._asleep.is_set():
            return EngineEnd(f"{self._name} was put to sleep")
        return await super().wait_exit()

    async def busy_slots(self) -> int | None:
        """Count the requests that it has; None if unknown."""
        answer = await probe_ok(self.endpoint, "/metrics", timeout_s=_METRICS_TIMEOUT_S)
        counts = [] if answer is None else _RUNNING.findall(answer.body)
        return int(sum(map(float, counts))) if counts else None

    async def stop(self, grace_s: float) -> None:
        """Put it to sleep if that is allowed and frees the memory; else end it."""
        if self._asleep.is_set():
            return
        sleeper = self._sleeper
        if sleeper is not None and self._host.sleeps and self._was_ready and grace_s > 0 and not self.ended:
            problem = await sleeper.sleep(self.endpoint, self.pid)
            if problem is None:
                self._host.park(self)
                self._asleep.set()
                return
            _log.warning("%s is stopped instead of put to sleep: %s", self._name, problem)
        await self.end(grace_s)

    async def end(self, grace_s: float) -> None:
        """End the process, asleep or not."""
        await super().stop(grace_s)


def _same(before: EngineOrder, now: EngineOrder) -> bool:
    """Whether an engine started for one order serves another: same files, recipe, devices and options."""

    def identity(order: EngineOrder) -> tuple[object, ...]:
        placement = order.placement
        shares = tuple((share.device.id, share.parts) for share in placement.used_shares)
        added = dict(order.env), tuple(order.args), order.launch
        return order.model_path, placement.recipe, shares, added, order.options

    return identity(before) == identity(now)
