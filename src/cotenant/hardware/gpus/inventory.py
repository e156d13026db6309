"""The probe of the devices that Cotenant uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cotenant.clock import Clock
from cotenant.domain.devices import Inventory
from cotenant.domain.vendors import Vendor
from cotenant.hardware.gpus.host import HostProbe

if TYPE_CHECKING:
    from cotenant.interfaces import GpuProbe


# What speaks to drivers is imported where one is asked: a short command reads descriptions instead.
def _nvidia(clock: Clock) -> GpuProbe:
    from cotenant.hardware.gpus.nvml import NvmlProbe

    return NvmlProbe(clock)


def _amd(clock: Clock) -> GpuProbe:
    from cotenant.hardware.gpus.amd import AmdProbe

    return AmdProbe(clock)


PROBES: Final[Mapping[Vendor, Callable[[Clock], GpuProbe]]] = {
    Vendor.NVIDIA: _nvidia,
    Vendor.AMD: _amd,
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
    """A probe that also measures host RAM if it finds GPUs, unless a GPU shares it.

    One such GPU stands for host RAM: it is one pool, and counts once. Next to cards with memory of their own
    it is left out, as llama.cpp does.
    """

    gpus: GpuProbe
    host: HostProbe

    def inventory(self) -> Inventory:
        """Measure every device now."""
        found = self.gpus.inventory()
        if not found.has_gpus:
            return found
        kept = [device for device in found.devices if not device.unified] or found.devices[:1]
        others = [device for device in found.devices if device not in kept]
        problems = (
            f"{each.label} shares host RAM and is left out: {kept[0].label} is used" for each in others
        )
        found = replace(
            found,
            devices=tuple(kept),
            readings={device.id: found.reading(device) for device in kept},
            problems=(*found.problems, *problems),
        )
        return found if kept[0].unified else replace(found, host=self.host.inventory())


def probe(spec: str | None, clock: Clock) -> GpuProbe:
    """Return the probe of the described GPUs if there is a description, else of this machine's devices.

    Raises BadDeviceSpec.
    """
    return WithHostMemory(_machine(clock) if spec is None else _described(clock, spec), HostProbe(clock))


def _machine(clock: Clock) -> GpuProbe:
    return MachineProbe(*(make(clock) for make in PROBES.values()))


def _described(clock: Clock, spec: str) -> GpuProbe:
    from cotenant.hardware.gpus.described import DescribedProbe

    return DescribedProbe(clock, spec)
