"""A model on its devices, from the decision to load it until its memory is seen free."""

from dataclasses import dataclass, field

from cotenant.domain.devices import DeviceId, is_host
from cotenant.domain.placements import Placement
from cotenant.domain.residencies import LeaseId, ResidencyId, ResidencyState, UnloadReason


@dataclass(frozen=True, slots=True)
class LastSeen:
    """A card in the last Reading that shows an engine there: free bytes, others' bytes and the engine's own.

    None if the driver does not report memory by process.
    """

    free_bytes: int
    foreign_bytes: int | None
    engine_bytes: int | None


@dataclass(slots=True)
class Residency:
    """A model on its devices.

    `last_seen` is the last measurement of each card that shows memory of the engine, or else the one at its
    end. `pending_unload` is why it is unloaded once it is idle. `leases` are those that are out, with the
    instants of their grants. `moved_from` names the devices where its model was, if a move started it. A
    `guest` is memory that is leased to a command. One that was `adopted` was not loaded by this scheduler.
    """

    id: ResidencyId
    model: str
    placement: Placement
    bytes_by_device: dict[DeviceId, int]
    state: ResidencyState
    since: float
    slots: int
    ready_at: float | None = None
    leases: dict[LeaseId, float] = field(default_factory=dict)
    unloading_at: float | None = None
    ended_at: float | None = None
    last_seen: dict[DeviceId, LastSeen] = field(default_factory=dict)
    measured_bytes: int | None = None
    pending_unload: tuple[UnloadReason, str] | None = None
    moved_from: str | None = None
    guest: bool = False
    adopted: bool = False

    @property
    def in_flight(self) -> int:
        """How many requests use it now."""
        return len(self.leases)

    @property
    def bytes(self) -> int:
        """What it claims on its GPUs, or of host RAM if it has none."""
        return sum(self.bytes_by_device[device] for device in self.devices)

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """The devices that it runs on: host RAM only if it has no GPU."""
        gpus = tuple(device for device in self.bytes_by_device if not is_host(device))
        return gpus or tuple(self.bytes_by_device)

    @property
    def node(self) -> str | None:
        """The machine that runs it; None for this one if there are no others."""
        return self.placement.node

    @property
    def nodes(self) -> tuple[str | None, ...]:
        """The machines that bear a part of it: mostly one."""
        return self.placement.nodes

    @property
    def held_since(self) -> float:
        """When its engine became ready, or else when its load began."""
        return self.since if self.ready_at is None else self.ready_at

    @property
    def gone(self) -> bool:
        """Whether its engine is stopping or gone."""
        return self.state in (ResidencyState.UNLOADING, ResidencyState.RECLAIMING)

    @property
    def idle(self) -> bool:
        """Whether it is ready and nothing uses it."""
        return self.state is ResidencyState.READY and self.in_flight == 0
