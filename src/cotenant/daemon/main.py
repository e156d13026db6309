"""Wiring: one model, planned, loaded, and served until told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import uvloop

from cotenant.analysis.calibration import Comparison, compare
from cotenant.clock import SystemClock
from cotenant.daemon.router import SlotRouter
from cotenant.daemon.settings import ServeSettings
from cotenant.daemon.stand_in import on_this_machine
from cotenant.domain.devices import Inventory
from cotenant.domain.errors import DoesNotFit, EngineDied
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.requests import ServedModel
from cotenant.engines.llama_cpp import LlamaHost
from cotenant.gateway.app import Gateway
from cotenant.gateway.server import bind, serve
from cotenant.interfaces import Engine, EngineOrder
from cotenant.planning.advice import plan
from cotenant.planning.planner import PlanRequest, leave_to_engine

T = TypeVar("T")
_log = logging.getLogger(__name__)
_ENGINE_GRACE_S: Final = 2.0
_LAST_ANSWERS_S: Final = 1.0


class Announcer(Protocol):
    """Told how serving goes, in the order of these methods."""

    def planned(self, result: Placement | Refusal) -> None:
        """Tell the plan, fitting or not."""
        ...

    def note(self, text: str) -> None:
        """Tell something that the operator should know."""
        ...

    def ready(self, address: str, engine: Engine, load_s: float, rows: tuple[Comparison, ...]) -> None:
        """Tell the address, and planned bytes against those that the engine reports."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """What to serve and on what: a request to the planner with its devices, and the settings."""

    settings: ServeSettings
    request: PlanRequest
    inventory: Inventory
    budgets: tuple[Budget, ...]


AfterReady = Callable[[str], Awaitable[None]]


def run(job: Job, announcer: Announcer, after_ready: AfterReady | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a second one hurries.

    `after_ready` is called with the address once requests are answered. Raises InsecureBind, PortTaken,
    DoesNotFit, EngineError.
    """
    job.settings.check()
    with bind(job.settings.host, job.settings.port) as sock:
        placement = _plan(job, announcer)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_Daemon(job, announcer, placement).serve(sock, after_ready))


def _plan(job: Job, announcer: Announcer) -> Placement:
    settings = job.settings
    decide = leave_to_engine if settings.use_fit_params else plan
    result = decide(job.request, job.budgets, settings.rules)
    announcer.planned(result)
    if isinstance(result, Refusal):
        raise DoesNotFit(f"{result.model} does not fit: {result.reason}", hint=_first_remedy(result))
    running = on_this_machine(job.request, result, settings.rules)
    if isinstance(running, Refusal):
        raise DoesNotFit(f"{running.model} does not fit in host RAM: {running.reason}")
    if running is not result:
        announcer.note(
            "The GPUs are described, not of this machine: the engine runs in host RAM, on the CPU."
        )
    return running


def _first_remedy(refusal: Refusal) -> str:
    if not refusal.remedies:
        return "See `cotenant gpus` for what holds memory."
    remedy = refusal.remedies[0]
    return f"It would fit with {remedy.text}" + (f": {remedy.flags}" if remedy.flags else ".")


class _Daemon:
    """One run of `serve`, from the start of the engine to its end."""

    def __init__(self, job: Job, announcer: Announcer, placement: Placement) -> None:
        self._job = job
        self._announcer = announcer
        self._placement = placement
        self._clock = SystemClock()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def serve(self, sock: socket.socket, after_ready: AfterReady | None) -> None:
        """Load, serve, drain, stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        settings, request = self._job.settings, self._job.request
        host = LlamaHost(
            # By port, since two daemons of one user must not write one file.
            log_dir=settings.log_dir / str(sock.getsockname()[1]),
            configured=settings.llama_server,
            cuda_version=self._job.inventory.cuda_version,
        )
        order = EngineOrder(
            request.name,
            settings.model_path,
            request.shape.kind,
            self._placement,
            projector_path=settings.projector_path,
            use_fit_params=settings.use_fit_params,
        )
        started = self._clock.now()
        engine = await host.start(order)
        try:
            if await self._until(self._stop, engine.wait_ready(settings.load_timeout_s)):
                await self._serve_ready(sock, engine, self._clock.now() - started, after_ready)
        finally:
            await engine.stop(0 if self._hurry.is_set() else _ENGINE_GRACE_S)

    def _on_signal(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def _serve_ready(
        self, sock: socket.socket, engine: Engine, load_s: float, after_ready: AfterReady | None
    ) -> None:
        router = self._router(engine)
        gateway = Gateway(router, api_keys=self._job.settings.api_keys)
        address = _address(sock)
        report = engine.report()
        rows = compare(self._placement, report) if report else ()
        told = asyncio.Event()

        def on_ready() -> None:
            self._announcer.ready(address, engine, load_s, rows)
            told.set()

        async with asyncio.TaskGroup() as tasks:
            extra = tasks.create_task(_after(told, after_ready, address)) if after_ready else None
            serving = tasks.create_task(
                serve(gateway, sock, stop=self._stop, grace_s=self._job.settings.grace_s, on_ready=on_ready)
            )
            hurried = tasks.create_task(self._hurry.wait())
            exited = tasks.create_task(engine.wait_exit())
            await asyncio.wait({serving, hurried, exited}, return_when=asyncio.FIRST_COMPLETED)
            why = exited.result() if exited.done() else None
            if why is not None:
                router.engine_gone(why)
                self._stop.set()
                await asyncio.wait({serving}, timeout=_LAST_ANSWERS_S)
            for task in (serving, hurried, exited, *([extra] if extra else [])):
                task.cancel()
        if why is not None:
            raise EngineDied(why, hint=f"The engine's log is {engine.log_path}.")

    def _router(self, engine: Engine) -> SlotRouter:
        settings, request = self._job.settings, self._job.request
        model = ServedModel(
            request.name,
            request.shape.kind,
            created_at=int(time.time()),
            placement=self._placement,
            build=engine.build,
            report=engine.report(),
            log_path=str(engine.log_path),
        )
        return SlotRouter(
            engine,
            model,
            slots=self._placement.recipe.parallel,
            max_queue=settings.max_queue,
            wait_timeout_s=settings.wait_timeout_s,
            also_known_as=("local",),
        )

    async def _until(self, event: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
        """Do the work unless the event comes first; whether it was done."""
        working, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
        try:
            await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return True
            return False
        finally:
            for task in (working, waiting):
                task.cancel()
            await asyncio.gather(working, waiting, return_exceptions=True)


async def _after(told: asyncio.Event, action: AfterReady, address: str) -> None:
    await told.wait()
    await action(address)


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"
