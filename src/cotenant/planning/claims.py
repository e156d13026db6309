"""Claims: bytes that are held for residencies, and what of them a Reading shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cotenant.domain.devices import DeviceId
from cotenant.domain.residencies import ResidencyId


@dataclass(slots=True)
class Claim:
    """Bytes held for a residency, by device, from the decision to load until they are seen back.

    `shown_at` is when the engine had taken them: a Reading from then on includes them. One that `grows` is
    taken at any time, or never; `foreign_before` is what others held of each device when it was made.
    """

    residency: ResidencyId
    bytes_by_device: dict[DeviceId, int]
    shown_at: float | None = None
    grows: bool = False
    foreign_before: dict[DeviceId, int] = field(default_factory=dict)


@dataclass(slots=True)
class Account:
    """The claims on one device, and their sum in bytes."""

    claims: dict[ResidencyId, Claim] = field(default_factory=dict)
    claimed_bytes: int = 0

    def growth(
        self, device: DeviceId, used_bytes: int, engine_bytes: Mapping[ResidencyId, int] | None
    ) -> int:
        """Return the bytes of claims that grow which a Reading does not show taken.

        If the driver reports no processes (`engine_bytes` is None), what is used of the device beyond the
        other claims and what others held before counts as theirs, as far as they claim it.
        """
        growing = [claim for claim in self.claims.values() if claim.grows]
        if not growing:
            return 0
        if engine_bytes is not None:
            held = ((c.bytes_by_device[device], engine_bytes.get(c.residency, 0)) for c in growing)
            return sum(max(0, claimed - taken) for claimed, taken in held)
        claimed = sum(claim.bytes_by_device[device] for claim in growing)
        taken = used_bytes - (self.claimed_bytes - claimed) - growing[0].foreign_before[device]
        return claimed - min(max(0, taken), claimed)
