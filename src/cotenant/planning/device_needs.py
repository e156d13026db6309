"""What a model needs of one device: planned once for each kind of device, and remembered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.planning.host_memory import placement_bytes

Fit: TypeAlias = Callable[[Sequence[Budget]], Placement | Refusal]
"""Places one model on the devices of these budgets."""

_UNLIMITED: Final = 1 << 62


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """Devices that a planner treats alike, by one of them; compared by identity, which is quick."""

    device: Device


def alike(device: Device) -> Device:
    """Return a device without what tells it from others that a planner treats alike."""
    if device.kind is DeviceKind.HOST:
        return device
    return replace(
        device,
        id=DeviceId(""),
        index=None,
        pci_bus_id=None,
        parent_id=None,
        node=None,
        runtime_name=None,
        render_node=None,
        slice_number=None,
    )


@dataclass(slots=True)
class _Needs:
    """The most bytes with which a planner refused, the least with which it placed, and what it took then."""

    fails_at: int = -1
    fits_at: int = _UNLIMITED + 1
    wanted: int | None = None
    weights: int = 0
    is_planned: bool = False


class DeviceNeeds:
    """The needs of one model, alone on a device, by kind of device.

    More room never turns a Placement into a Refusal: the planner is asked only between the most bytes that
    were too few and the least that were enough.
    """

    __slots__ = ("_kinds", "fit")

    def __init__(self, fit: Fit) -> None:
        self.fit = fit
        self._kinds: dict[Kind, _Needs] = {}

    def fits(self, kind: Kind, room: int) -> bool:
        """Whether it fits on a device of a kind with so many bytes."""
        needs = self._of(kind)
        if needs.fails_at < room < needs.fits_at:
            if isinstance(self.fit([Budget(kind.device, room, room)]), Placement):
                needs.fits_at = room
            else:
                needs.fails_at = room
        return room >= needs.fits_at

    def wanted_bytes(self, kind: Kind) -> int | None:
        """Return what it takes of a device with room for anything; None if it cannot run there at all."""
        return self._planned(kind).wanted

    def least_bytes(self, kind: Kind) -> int:
        """Return the least that it takes of devices of a kind, however many: its weights. 0 if unknown."""
        return self._planned(kind).weights

    def _of(self, kind: Kind) -> _Needs:
        found = self._kinds.get(kind)
        if found is None:
            found = self._kinds[kind] = _Needs()
        return found

    def _planned(self, kind: Kind) -> _Needs:
        needs = self._of(kind)
        if not needs.is_planned:
            alone = self.fit([Budget(kind.device, _UNLIMITED, _UNLIMITED)])
            if isinstance(alone, Placement):
                needs.wanted = placement_bytes(alone).get(kind.device.id)
                needs.weights = sum(share.parts.weights for share in alone.used_shares)
            # Last: another thread may look at it meanwhile.
            needs.is_planned = True
        return needs
