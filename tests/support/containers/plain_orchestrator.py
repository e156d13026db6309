"""An orchestrator over plain values: containers are created in an instant, or fail as they are told to."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from cotenant.domain.errors import ContainerEngineMissing, GeneratedFileEdited, GeneratedFileFailed
from cotenant.services.model import (
    ApplyOrder,
    ApplyState,
    ApplyStatus,
    ContainerState,
    OnFailure,
    ProgressState,
    SavedConfiguration,
    Service,
    ServiceDevice,
    ServiceProgress,
)


class PlainOrchestrator:
    """`broken` services do not come back; `gate` is what an apply waits for."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.states: dict[str, ContainerState] = {}
        self.written: list[SavedConfiguration] = []
        self.orders: list[ApplyOrder] = []
        self.broken: set[str] = set()
        self.engine = True
        self.disk_full = False
        self.by_hand: tuple[Path, ...] = ()
        self.left: ApplyStatus | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._ids = count(1)

    def compose_services(self) -> Sequence[str]:
        return self.names

    def write(
        self,
        configuration: SavedConfiguration,
        services: Sequence[Service],
        devices: Sequence[ServiceDevice],
        *,
        force: bool = False,
    ) -> None:
        if self.disk_full:
            raise GeneratedFileFailed("config/gpu-assignments.yml cannot be written: no space left on device")
        if self.by_hand and not force:
            raise GeneratedFileEdited("config/gpu-assignments.yml was changed by hand")
        self.by_hand = ()
        self.written.append(configuration)

    def edited(self) -> Sequence[Path]:
        return self.by_hand

    async def containers(self) -> Sequence[ContainerState]:
        if not self.engine:
            raise ContainerEngineMissing("no compose command works on this machine")
        return [self.states.get(name, ContainerState(name)) for name in self.names]

    async def apply(self, order: ApplyOrder, told: Callable[[ApplyStatus], None]) -> ApplyStatus:
        self.orders.append(order)
        status = ApplyStatus(
            order.number,
            ApplyState.RUNNING,
            0.0,
            services=tuple(ServiceProgress(each.name, ProgressState.PENDING) for each in order.changed),
        )
        told(status)
        await self.gate.wait()
        failed = [each.name for each in order.changed if each.name in self.broken]
        if failed and order.on_failure is OnFailure.ROLLBACK:
            return ApplyStatus(order.number, ApplyState.ROLLED_BACK, 0.0, 1.0, message=f"{failed[0]} failed")
        for each in order.changed:
            if each.name not in failed:
                pinned = order.after.get(each.name)
                self.states[each.name] = ContainerState(
                    each.name, f"c{next(self._ids)}", running=True, assignment=pinned
                )
        ended = ApplyState.FAILED if failed else ApplyState.SUCCEEDED
        return ApplyStatus(order.number, ended, 0.0, 1.0)

    async def unfinished(self) -> ApplyStatus | None:
        return self.left
