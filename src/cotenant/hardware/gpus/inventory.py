"""The probe of the devices that Cotenant uses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from cotenant.clock import Clock
from cotenant.domain.devices import Inventory
from cotenant.domain.vendors import Vendor
from cotenant.hardware.gpus.amd import AmdProbe
from cotenant.hardware.gpus.described import DescribedProbe
from cotenant.hardware.gpus.host import HostProbe
from cotenant.hardware.gpus.nvml import NvmlProbe
from cotenant.interfaces import GpuProbe

PROBES: Final[Mapping[Vendor, Callable[[Clock], GpuProbe]]] = {
    Vendor.NVIDIA: NvmlProbe,
    Vendor.AMD: AmdProbe,
}
"""How each vendor's GPUs are found, in this order."""


class MachineProbe:
    """The first vendor's cards that are found, in order; without any, the RAM of this machine.

    Cards of two vendors are never planned on together: one engine runs on one vendor's. Once cards were
    found, only their vendor is asked: if its driver fails later there are no cards, never another vendor's.
    """

    def __init__(self, *probes: GpuProbe) -> None:
        self._probes = probes

    def inventory(self) -> Inventory:
        """Measure every device now; without GPUs, what is wrong with each vendor's is among the problems."""
        problems: list[str] = []
        for probe in self._probes:
            found = probe.inventory()
            if found.has_gpus:
                self._probes = (probe,)
                return replace(found, problems=(*problems, *found.problems))
            problems.extend(found.problems)
        return replace(found, problems=tuple(problems))


@dataclass(frozen=True, slots=True)
class WithHostMemory:
    """A probe that also measures host RAM if it finds GPUs."""

    gpus: GpuProbe
    host: HostProbe

    def inventory(self) -> Inventory:
        """Measure every device now."""
        found = self.gpus.inventory()
        return replace(found, host=self.host.inventory()) if found.has_gpus else found


def probe(spec: str | None, clock: Clock) -> GpuProbe:
    """Return the probe of the described GPUs if there is a description, else of this machine's devices.

    Raises BadDeviceSpec.
    """
    gpus = MachineProbe(*(make(clock) for make in PROBES.values())) if spec is None else None
    return WithHostMemory(gpus or DescribedProbe(clock, spec or ""), HostProbe(clock))
