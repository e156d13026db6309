"""A service operator over plain values, for what shows and orders."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import (
    ApplyRunning,
    BadAssignment,
    ContainerEngineMissing,
    CotenantError,
    GeneratedFileEdited,
    NothingToRollBack,
)
from cotenant.domain.units import GIB, MIB
from cotenant.services.assign.changes import difference
from cotenant.services.assign.recommend import Recommendation, recommend
from cotenant.services.assign.strategies import assign
from cotenant.services.model import (
    ApplyState,
    ApplyStatus,
    Assignment,
    AssignmentPlan,
    Change,
    ContainerState,
    ProgressState,
    SavedConfiguration,
    SeenDevice,
    Service,
    ServiceDevice,
    ServiceProgress,
    ServiceRole,
    ServicesView,
    Strategy,
)

A5500 = ServiceDevice(DeviceId("GPU-a5500"), 0, "RTX A5500", 24564 * MIB, speed=768e9)
A400 = ServiceDevice(DeviceId("GPU-a400"), 1, "RTX A400", 4094 * MIB, occupied_bytes=329 * MIB, speed=96e9)
SERVICES = (
    Service(
        "ai-llm",
        "Nemotron-3-Nano-30B (Q4_K_M)",
        22221 * MIB,
        ServiceRole.LLM,
        latency_critical=True,
    ),
    Service("ai-yolo26", "YOLO26", 650 * MIB, latency_critical=True),
    Service("ai-florence", "Florence-2-Large", 1536 * MIB),
    Service("ai-clip", "CLIP ViT-L", 1229 * MIB),
    Service("ai-enrichment", "Model Zoo (9 models)", 6963 * MIB, budget_env="VRAM_BUDGET_GB"),
)
"""The reference hardware of the document, and its five services."""

DAY = 1_737_628_200.0
"""2025-01-23 10:30 UTC."""


class PlainServices:
    """Keeps configurations in a list; an apply goes on when `step` or `finish` says so.

    `fault` is what saving raises, `engine` whether there is a container engine, `edited` the generated files
    that somebody changed.
    """

    def __init__(
        self, services: Sequence[Service] = SERVICES, devices: Sequence[ServiceDevice] = (A5500, A400)
    ) -> None:
        self.services = tuple(services)
        self.cards = list(devices)
        self.saved: list[SavedConfiguration] = []
        self.applied: SavedConfiguration | None = None
        self.applies: list[ApplyStatus] = []
        self.running: dict[str, Assignment] = {}
        self.edited: tuple[Path, ...] = ()
        self.fault: CotenantError | None = None
        self.engine = True
        self.seen: dict[int, SeenDevice] = {}
        self.calls: list[str] = []
        self._earlier: SavedConfiguration | None = None
        self._readers: set[asyncio.Queue[ApplyStatus]] = set()

    @property
    def readers(self) -> int:
        return len(self._readers)

    async def view(self) -> ServicesView:
        saved = self.saved[-1] if self.saved else None
        plan = self._planned(saved.strategy, saved.assignments) if saved else None
        return ServicesView(
            self.services,
            tuple(self.cards),
            saved,
            self.applied,
            plan.warnings if plan else (),
            tuple(f"{path.name} was edited" for path in self.edited),
            self.edited,
            self._changes(saved.assignments) if saved else (),
            saved.strategy if saved else Strategy.VRAM_BASED,
        )

    async def preview(
        self, strategy: Strategy, assignments: Sequence[Assignment] | None = None
    ) -> tuple[AssignmentPlan, Sequence[Change]]:
        self._check(assignments or ())
        plan = self._planned(strategy, assignments or ())
        return plan, self._changes(plan.assignments)

    async def recommend(self) -> Recommendation:
        plans = [self._planned(strategy, ()) for strategy in Strategy]
        counted = [(plan, len(self._changes(plan.assignments))) for plan in plans]
        present = self.saved[-1].strategy if self.saved else Strategy.VRAM_BASED
        return recommend(counted, self.services, self.cards, {}, present)

    async def save(
        self, strategy: Strategy, assignments: Sequence[Assignment], *, force: bool = False
    ) -> AssignmentPlan:
        self._check(assignments)
        if self.edited and not force:
            raise GeneratedFileEdited(
                f"{self.edited[0]} was edited by hand", hint="Save with force to overwrite it."
            )
        if self.fault is not None:
            raise self.fault
        self.edited = ()
        plan = self._planned(strategy, assignments)
        number = len(self.saved) + 1
        self.saved.append(SavedConfiguration(number, DAY + number, strategy, plan.assignments))
        return plan

    async def apply(self, *, force: bool = False) -> ApplyStatus:
        self.calls.append(f"apply force={force}")
        if not self.saved:
            raise NothingToRollBack("nothing was saved yet", hint="Save assignments first.")
        return self._begin(self.saved[-1])

    async def status(self) -> tuple[ApplyStatus | None, Sequence[ContainerState]]:
        containers = [
            ContainerState(service.name, f"c-{service.name}", True, None, self.running.get(service.name))
            for service in self.services
        ]
        return (self.applies[-1] if self.applies else None), containers

    async def rollback(self, number: int | None = None) -> ApplyStatus:
        self.calls.append(f"rollback {number}")
        found = self._earlier
        if number is not None:
            found = next((each for each in self.saved if each.number == number), None)
        if found is None:
            raise NothingToRollBack("no earlier configuration was applied", hint="See the history.")
        return self._begin(found)

    async def history(self, limit: int = 20) -> Sequence[SavedConfiguration]:
        return self.saved[::-1][:limit]

    async def detect(self) -> Sequence[SeenDevice]:
        for card in self.cards:
            free = card.total_bytes - card.occupied_bytes
            self.seen[card.index] = SeenDevice(
                card.index, card.id, card.name, card.total_bytes, free, "8.6", DAY
            )
        return [self.seen[index] for index in sorted(self.seen)]

    async def changes(self) -> AsyncIterator[ApplyStatus]:
        reader: asyncio.Queue[ApplyStatus] = asyncio.Queue(maxsize=16)
        self._readers.add(reader)
        try:
            while True:
                yield await reader.get()
        finally:
            self._readers.discard(reader)

    def step(self, service: str, state: ProgressState, message: str | None = None) -> None:
        """Let a service of the apply get further."""
        status = self.applies[-1]
        services = tuple(
            replace(each, state=state, message=message) if each.service == service else each
            for each in status.services
        )
        self._tell(replace(status, services=services))

    def finish(self, state: ApplyState = ApplyState.SUCCEEDED, message: str | None = None) -> None:
        """End the apply."""
        status = replace(self.applies[-1], state=state, finished_at=DAY + 100, message=message)
        going = self._going
        if state is ApplyState.SUCCEEDED:
            status = replace(
                status, services=tuple(replace(s, state=ProgressState.HEALTHY) for s in status.services)
            )
            self.running = {each.service: each for each in going.assignments if each.gpu_index is not None}
            self._earlier, self.applied = self.applied, going
        self.saved = [
            replace(each, apply=status) if each.number == going.number else each for each in self.saved
        ]
        self._tell(status)

    def _begin(self, configuration: SavedConfiguration) -> ApplyStatus:
        if self.applies and self.applies[-1].running:
            raise ApplyRunning("an apply is going on", hint="Wait for it: /api/system/gpu-config/status.")
        if not self.engine:
            raise ContainerEngineMissing(
                "no compose command works here: podman-compose, podman compose and docker compose were tried",
                hint="Install one of them, or set services.compose.command.",
            )
        self._going = configuration
        by_name = {each.service: each for each in configuration.assignments}
        services = tuple(
            ServiceProgress(
                change.service,
                ProgressState.PENDING,
                by_name[change.service].gpu_index,
                f"c-{change.service}",
                more=by_name[change.service].more,
            )
            for change in self._changes(configuration.assignments)
        )
        status = ApplyStatus(len(self.applies) + 1, ApplyState.RUNNING, DAY + 50, services=services)
        self.applies.append(status)
        self._tell(status)
        return status

    def _tell(self, status: ApplyStatus) -> None:
        self.applies[-1] = status
        for reader in self._readers:
            if reader.full():
                reader.get_nowait()
            reader.put_nowait(status)

    def _check(self, assignments: Sequence[Assignment]) -> None:
        names = {service.name for service in self.services}
        cards = {card.index for card in self.cards}
        kept = {each.device_id for saved in self.saved[-1:] for each in saved.assignments}
        for number, each in enumerate(assignments):
            where = f"assignments[{number}]"
            if not each.service:
                continue
            if each.service in [other.service for other in assignments[:number]]:
                raise BadAssignment(f"{each.service} is listed already", field=f"{where}.service")
            if each.service not in names:
                raise BadAssignment(f"{each.service} is no service here", field=f"{where}.service")
            if each.gpu_index is not None and each.gpu_index not in cards:
                raise BadAssignment(f"there is no GPU {each.gpu_index}", field=f"{where}.gpu_index")
            known = {card.id for card in self.cards} | kept
            if each.gpu_index is None and each.device_id is not None and each.device_id not in known:
                raise BadAssignment(f"{each.device_id} was never a GPU here", field=f"{where}.gpu_uuid")

    def _planned(self, strategy: Strategy, assignments: Sequence[Assignment]) -> AssignmentPlan:
        return assign(strategy, self.services, self.cards, assignments)

    def _changes(self, assignments: Sequence[Assignment]) -> Sequence[Change]:
        return difference(tuple(self.running.values()), assignments)


def big(index: int) -> ServiceDevice:
    """A card of 24 GiB."""
    return ServiceDevice(DeviceId(f"GPU-{index}"), index, "RTX 3090", 24 * GIB)
