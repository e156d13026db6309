"""An engine whose model is over several machines, as `interfaces.Engine`."""

import asyncio
from collections.abc import Sequence
from typing import Final

from cotenant.domain.engines import Endpoint, EngineBuild, EngineEnd, EngineReport
from cotenant.domain.errors import EngineLoadFailed
from cotenant.interfaces import Engine
from cotenant.nodes.engine import NodeEngine
from cotenant.nodes.messages import LoadProgress

_CAUSE_S: Final = 1.0
"""An engine that has lost a part dies of that at once, and may be heard of first."""


class SpanningEngine:
    """The engine that runs a model, and the `parts` on other machines that lend it GPUs: all end together."""

    pid = None
    log_path = None

    def __init__(self, main: NodeEngine, parts: Sequence[NodeEngine]) -> None:
        self.main = main
        self.parts = tuple(parts)

    @property
    def endpoint(self) -> Endpoint:
        """That of the engine which runs the model."""
        return self.main.endpoint

    @property
    def build(self) -> EngineBuild:
        """The program that runs the model."""
        return self.main.build

    @property
    def problem(self) -> str | None:
        """What it last answered while it was not ready."""
        return self.main.problem

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when it answers. Raises EngineLoadFailed or EngineLoadTimeout once it or a part is gone."""
        ready = asyncio.ensure_future(self.main.wait_ready(timeout_s))
        ends = [asyncio.ensure_future(part.wait_exit()) for part in self.parts]
        try:
            await asyncio.wait({ready, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and ready.exception() is None:
                return
            if lost := await self._lost_part(ends):
                await self.main.stop(0)
                raise EngineLoadFailed(lost.why, cause=lost.cause)
            await ready
        finally:
            await _cancel(ready, *ends)

    async def wait_exit(self) -> EngineEnd:
        """Wait until it or one of its parts is gone, and return how that ended and why."""
        ends = [asyncio.ensure_future(part.wait_exit()) for part in self.parts]
        main = asyncio.ensure_future(self.main.wait_exit())
        try:
            await asyncio.wait({main, *ends}, return_when=asyncio.FIRST_COMPLETED)
            return await self._lost_part(ends) or main.result()
        finally:
            await _cancel(main, *ends)

    async def busy_slots(self) -> int | None:
        """Count the slots that are generating; None if unknown."""
        return await self.main.busy_slots()

    async def load_progress(self) -> LoadProgress:
        """Return how much of its files it has read."""
        return await self.main.load_progress()

    def report(self) -> EngineReport | None:
        """Return the bytes that the engine says it took, those on other machines as well."""
        return self.main.report()

    async def stop(self, grace_s: float) -> None:
        """Stop it and then its parts, and return when their machines say that they are gone."""
        try:
            await self.main.stop(grace_s)
        finally:
            await asyncio.gather(*(part.stop(0) for part in self.parts))

    async def _lost_part(self, ends: Sequence["asyncio.Future[EngineEnd]"]) -> EngineEnd | None:
        """Return how a part has ended, if one has; None if all are there."""
        done, _ = await asyncio.wait(ends, timeout=_CAUSE_S, return_when=asyncio.FIRST_COMPLETED)
        for part, end in zip(self.parts, ends, strict=True):
            if end in done:
                found = end.result()
                return EngineEnd(f"its part on {part.node} is gone: {found.why}", found.cause)
        return None


def engines_of(engine: Engine | None) -> tuple[NodeEngine, ...]:
    """Return the engines on other machines that an engine is made of."""
    if isinstance(engine, SpanningEngine):
        return (engine.main, *engine.parts)
    return (engine,) if isinstance(engine, NodeEngine) else ()


async def _cancel(*tasks: "asyncio.Future[None] | asyncio.Future[EngineEnd]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
