"""Which devices Cotenant works with."""

from __future__ import annotations

from dataclasses import replace

from cotenant.clock import Clock
from cotenant.domain.devices import Inventory
from cotenant.hardware.gpus.amd import AmdProbe
from cotenant.hardware.gpus.described import DescribedProbe
from cotenant.hardware.gpus.nvml import NvmlProbe
from cotenant.interfaces import GpuProbe


class MachineProbe:
    """The first vendor's cards that are found, in order; without any, the RAM of this machine.

    Cards of two vendors are never planned on together: one engine runs on one vendor's. Once cards were
    found, their vendor alone is asked, so that a driver that fails later leaves no cards, and never others.
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


def probe(spec: str | None, clock: Clock) -> GpuProbe:
    """Return the probe of the described GPUs if there is a description, else of this machine's devices.

    Raises BadDeviceSpec.
    """
    return MachineProbe(NvmlProbe(clock), AmdProbe(clock)) if spec is None else DescribedProbe(clock, spec)
