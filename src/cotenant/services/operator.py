"""What an operator can see and change of GPU configuration: previews, saves, applies, rollbacks."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.concurrency.thread_gate import ThreadGate
from cotenant.domain.devices import DeviceId, Inventory
from cotenant.domain.errors import (
    ComposeFileError,
    ContainerEngineMissing,
    QueueFull,
    StoreError,
)
from cotenant.services.apply_runner import ApplyRunner
from cotenant.services.assign.changes import difference, recreations, rollback_target
from cotenant.services.assign.checks import resolved
from cotenant.services.assign.fallback import fall_back, kept_assignments
from cotenant.services.assign.recommend import Recommendation, recommend
from cotenant.services.assign.strategies import assign
from cotenant.services.assign.warnings import warnings_of
from cotenant.services.compose.orchestrator import ComposeOrchestrator
from cotenant.services.devices import seen_devices, service_devices
from cotenant.services.interfaces import ServiceStore
from cotenant.services.model import (
    ApplyOrder,
    ApplyStatus,
    Assignment,
    AssignmentPlan,
    Change,
    ContainerState,
    GpuRef,
    ProgressState,
    SavedConfiguration,
    SeenDevice,
    Service,
    ServiceDevice,
    ServicesSettings,
    ServicesView,
    ServiceWarning,
    Strategy,
)
from cotenant.services.usage import measured_bytes

_MAX_HISTORY: Final = 1_000
_ENGINE_PATIENCE_S: Final = 10.0
"""After that a page is shown without the state of containers."""

_FRESH_S: Final = 1.0
"""So old the state of containers may be that is shown: each query runs the engine's program twice."""

_LOG: Final = logging.getLogger("cotenant.services")

Measure = Callable[[], Inventory]
Claims = Callable[[], Mapping[DeviceId, int]]


class Services:
    """The services of this machine: the store that remembers assignments, and their orchestrator.

    `measure` measures every GPU and may block. `claims` returns the bytes that the scheduler's models hold,
    by device.
    """

    def __init__(
        self,
        settings: ServicesSettings,
        store: ServiceStore,
        orchestrator: ComposeOrchestrator,
        measure: Measure,
        claims: Claims,
    ) -> None:
        self._settings = settings
        self._enabled = tuple(service for service in settings.items if service.enabled)
        self._store = store
        self._orchestrator = orchestrator
        self._measure = measure
        self._claims = claims
        self._runner = ApplyRunner(orchestrator, store)
        self._changing = asyncio.Lock()
        self._scoring = ThreadGate(lambda: QueueFull("many recommendations are being computed"))
        self._measuring: asyncio.Task[Inventory] | None = None
        self._querying: asyncio.Task[Sequence[ContainerState] | None] | None = None
        self._queried: tuple[float, ApplyStatus | None] = (0.0, None)

    async def start(self) -> None:
        """Store which GPUs are present, and find out the state of an interrupted apply.

        Models are served even if the database is unavailable.
        """
        try:
            await self.detect()
        except StoreError as error:
            _LOG.warning("GPU configuration is unavailable for now: %s", error.message)
        await self._runner.recover()

    async def close(self) -> None:
        """Stop the running apply."""
        await self._runner.close()

    # Reading.

    async def view(self) -> ServicesView:
        """Return everything as it is now. Raises StoreError."""
        saved, applied = await self._store.current(), await self._store.applied()
        inventory, containers = await asyncio.gather(self._inventory(), self._containers(age_s=_FRESH_S))
        devices = self._devices(inventory, applied, containers)
        problems = list(inventory.problems)
        changes: Sequence[Change] = ()
        if not devices:
            problems.append("No GPUs detected: services cannot be pinned. Describe some with --gpus to plan.")
        compose = await self._compose_services(problems)
        warnings: tuple[ServiceWarning, ...] = ()
        if saved is not None:
            effective, moved = fall_back(saved.assignments, self._enabled, devices)
            found = warnings_of(self._settings.items, devices, effective, known_services=compose)
            warnings = (*moved, *found)
            changes = await self._changes(applied, effective, containers)
        edited = await asyncio.to_thread(self._orchestrator.edited)
        problems += [
            f"{path} was changed by hand since Cotenant wrote it: it is not overwritten without force."
            for path in edited
        ]
        return ServicesView(
            self._settings.items,
            devices,
            saved,
            applied,
            warnings,
            problems,
            edited,
            changes=changes,
            strategy=saved.strategy if saved else self._settings.strategy,
        )

    async def preview(
        self, strategy: Strategy, assignments: Sequence[Assignment] | None = None
    ) -> tuple[AssignmentPlan, Sequence[Change]]:
        """Return what would be saved, and what applying it would recreate.

        Services that `assignments` leave out are placed by the strategy. None: under `manual` those saved.
        Raises BadAssignment, StoreError.
        """
        saved, applied = await self._store.current(), await self._store.applied()
        inventory, containers = await asyncio.gather(self._inventory(), self._containers())
        devices = self._devices(inventory, applied, containers)
        if assignments is not None:
            manual = resolved(assignments, self._settings.items, devices, saved)
        else:
            manual = saved.assignments if strategy is Strategy.MANUAL and saved is not None else ()
        plan = await self._plan(strategy, manual, devices, saved)
        effective, _ = fall_back(plan.assignments, self._enabled, devices)
        return plan, await self._changes(applied, effective, containers)

    async def recommend(self) -> Recommendation:
        """Score what every strategy would assign now, as a preview of it shows, and recommend one.

        Raises StoreError, and QueueFull if many are computed already.
        """
        saved, applied = await self._store.current(), await self._store.applied()
        inventory, containers = await asyncio.gather(self._inventory(), self._containers(age_s=_FRESH_S))
        present = saved.strategy if saved else self._settings.strategy
        devices = self._devices(inventory, applied, containers)

        def plans() -> tuple[Mapping[str, Mapping[DeviceId, int]], Sequence[AssignmentPlan]]:
            found = []
            for strategy in Strategy:
                by_hand = saved.assignments if strategy is Strategy.MANUAL and saved is not None else ()
                manual = kept_assignments(strategy, by_hand, devices, saved)
                found.append(assign(strategy, self._enabled, devices, manual))
            return measured_bytes(inventory, containers or ()), found

        # The search for layouts takes up to some tenths of a second each: loads must not wait for that.
        measured, found = await self._scoring.run(plans)
        counted = []
        for plan in found:
            effective, _ = fall_back(plan.assignments, self._enabled, devices)
            counted.append((plan, len(await self._changes(applied, effective, containers))))
        used = {name: sum(by_device.values()) for name, by_device in measured.items()}
        services = [replace(one, vram_bytes=used.get(one.name, one.vram_bytes)) for one in self._enabled]
        # Where a service was measured, it runs, whatever it is pinned to.
        runs = {name: Assignment(name).on(GpuRef(None, id_) for id_ in on) for name, on in measured.items()}
        if containers is not None:
            containers = [replace(c, assignment=runs.get(c.service, c.assignment)) for c in containers]
        seen = self._devices(inventory, applied, containers, services)
        return recommend(counted, self._enabled, seen, used, present)

    async def status(self) -> tuple[ApplyStatus | None, Sequence[ContainerState]]:
        """Return the last apply and the containers as they are; none if there is no container engine."""
        return await self._last_apply(), await self._containers(None, _FRESH_S) or ()

    async def history(self, limit: int = 20) -> Sequence[SavedConfiguration]:
        """Return the last configurations, newest first. Raises StoreError."""
        return await self._store.history(limit)

    async def detect(self) -> Sequence[SeenDevice]:
        """Detect the GPUs again and return all that were ever seen. Raises StoreError."""
        await self._store.see_devices(seen_devices(await self._inventory(), time.time()))
        return await self._store.devices()

    def changes(self) -> AsyncIterator[ApplyStatus]:
        """Follow applies step by step. A slow reader loses the oldest steps."""
        return self._runner.subscribe()

    # Changing.

    async def save(
        self, strategy: Strategy, assignments: Sequence[Assignment], *, force: bool = False
    ) -> AssignmentPlan:
        """Save assignments to the database and both files, or to none; return them as saved, with warnings.

        Services that `assignments` leave out are placed by the strategy; under `manual` they stay unpinned.
        Raises BadAssignment, GeneratedFileEdited, GeneratedFileFailed, StoreError, and ApplyRunning, since an
        apply works with the files.
        """
        async with self._changing:
            self._runner.check_idle()
            _, plan = await self._save(strategy, assignments, force=force)
            return plan

    async def apply(self, *, force: bool = False) -> ApplyStatus:
        """Start to recreate the services whose containers do not run as saved.

        That is with another assignment, not at all, unhealthy, or not up since the last apply. If nothing was
        saved, the configured strategy's assignments are saved first. Returns at once. Raises ApplyRunning,
        ContainerEngineMissing, ComposeFileError, GeneratedFileEdited, GeneratedFileFailed, StoreError.
        """
        async with self._changing:
            self._runner.check_idle()
            # This comes before saving: without a container engine nothing is saved.
            containers = await self._orchestrator.containers()
            saved = await self._store.current()
            if saved is None:
                saved, _ = await self._save(self._settings.strategy, (), force=force)
            return await self._start(saved, containers, force=force)

    async def rollback(self, number: int | None = None) -> ApplyStatus:
        """Start to restore the configuration applied before, or `number`; return at once.

        After a failed apply that is the last good one, even if it was restored already: then the saved
        configuration is the one that runs. This adds an entry to the history. Before the first apply, nothing
        was pinned. Raises NothingToRollBack and what `apply` raises.
        """
        async with self._changing:
            self._runner.check_idle()
            target = rollback_target(await self._store.history(_MAX_HISTORY), number, self._enabled)
            containers = await self._orchestrator.containers()
            devices = self._devices(await self._inventory(), await self._store.applied(), containers)
            saved = await self._commit(target.strategy, target.assignments, devices, force=True)
            return await self._start(saved, containers, force=True)

    async def _save(
        self, strategy: Strategy, assignments: Sequence[Assignment], *, force: bool
    ) -> tuple[SavedConfiguration, AssignmentPlan]:
        saved, applied = await self._store.current(), await self._store.applied()
        inventory, containers = await asyncio.gather(self._inventory(), self._containers())
        devices = self._devices(inventory, applied, containers)
        plan = await self._plan(
            strategy, resolved(assignments, self._settings.items, devices, saved), devices, saved
        )
        return await self._commit(strategy, plan.assignments, devices, force=force), plan

    async def _commit(
        self,
        strategy: Strategy,
        assignments: Sequence[Assignment],
        devices: Sequence[ServiceDevice],
        *,
        force: bool,
    ) -> SavedConfiguration:
        """Save assignments to the database and the generated files, or to none."""
        at = time.time()

        def publish(number: int) -> None:
            saved = SavedConfiguration(number, at, strategy, tuple(assignments))
            self._orchestrator.write(saved, self._settings.items, devices, force=force)

        return await self._store.save(strategy, assignments, at, publish)

    async def _plan(
        self,
        strategy: Strategy,
        manual: Sequence[Assignment],
        devices: Sequence[ServiceDevice],
        saved: SavedConfiguration | None,
    ) -> AssignmentPlan:
        """Return what a strategy assigns."""
        manual = kept_assignments(strategy, manual, devices, saved)
        known = await self._compose_services([])
        # The search for a layout takes up to some tenths of a second.
        return await asyncio.to_thread(
            assign, strategy, self._enabled, devices, manual=manual, known_services=known
        )

    async def _start(
        self, saved: SavedConfiguration, running: Sequence[ContainerState], *, force: bool
    ) -> ApplyStatus:
        applied = await self._store.applied()
        devices = self._devices(await self._inventory(), applied, running)
        assignments, _ = fall_back(saved.assignments, self._enabled, devices)
        effective = replace(saved, assignments=tuple(assignments))
        await asyncio.to_thread(
            self._orchestrator.write, effective, self._settings.items, devices, force=force
        )
        changing = {change.service for change in await self._changes(applied, assignments, running)}
        order = ApplyOrder(
            saved.number,
            [service for service in self._enabled if service.name in changing],
            {state.service: state.assignment for state in running if state.assignment},
            {each.service: each for each in assignments},
            self._settings.on_failure,
            applied.number if applied is not None else None,
        )
        return self._runner.start(order)

    # Helpers.

    async def _inventory(self) -> Inventory:
        """Measure every GPU. Concurrent callers share one measurement, so that drivers are queried once."""
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.get_running_loop().create_task(run_in_detached_thread(self._measure))
        return await asyncio.shield(self._measuring)

    async def _containers(
        self, patience_s: float | None = _ENGINE_PATIENCE_S, age_s: float = 0.0
    ) -> Sequence[ContainerState] | None:
        """Return the containers as they are; None if no engine answers. Concurrent callers share a query.

        A state up to `age_s` old does, unless an apply took a step since.
        """
        now, last = time.monotonic(), self._runner.status
        current = now - self._queried[0] < age_s and last == self._queried[1]
        if self._querying is None or (self._querying.done() and not current):
            self._queried = now, last
            self._querying = asyncio.get_running_loop().create_task(self._query())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                return await asyncio.shield(self._querying)
        return None

    async def _query(self) -> Sequence[ContainerState] | None:
        with contextlib.suppress(ContainerEngineMissing, ComposeFileError):
            return await self._orchestrator.containers()
        return None

    def _devices(
        self,
        inventory: Inventory,
        applied: SavedConfiguration | None,
        containers: Sequence[ContainerState] | None,
        services: Sequence[Service] | None = None,
    ) -> tuple[ServiceDevice, ...]:
        """Return the GPUs next to `services`, by default as their needs are stated."""
        pinned = {each.service: each for each in (applied.assignments if applied is not None else ())}
        running = None
        if containers is not None:
            running = {state.service for state in containers if state.running}
            pinned |= {
                state.service: state.assignment or Assignment(state.service)
                for state in containers
                if state.running
            }
        enabled = self._enabled if services is None else services
        return service_devices(inventory, self._claims(), enabled, [*pinned.values()], running)

    async def _changes(
        self,
        applied: SavedConfiguration | None,
        after: Sequence[Assignment],
        containers: Sequence[ContainerState] | None,
    ) -> Sequence[Change]:
        """Return what applying `after` would recreate; without an engine, by what was applied last."""
        if containers is None:
            return difference(applied.assignments if applied is not None else (), after)
        last = await self._last_apply()
        failed = (
            {each.service for each in last.services if each.state is ProgressState.FAILED} if last else ()
        )
        return recreations(self._enabled, containers, after, failed)

    async def _last_apply(self) -> ApplyStatus | None:
        return self._runner.status or await self._store.last_apply()

    async def _compose_services(self, problems: list[str]) -> frozenset[str] | None:
        """Return the names in the compose files. Unreadable files give None and a sentence in `problems`."""
        try:
            # A file of a few hundred lines takes tens of milliseconds to read.
            return frozenset(await asyncio.to_thread(self._orchestrator.compose_services))
        except ComposeFileError as error:
            problems.append(f"{error.message}. {error.hint}")
            return None
