"""Which devices Cotenant works with."""

from __future__ import annotations

from cotenant.clock import Clock
from cotenant.hardware.described import DescribedProbe
from cotenant.hardware.nvml import NvmlProbe
from cotenant.interfaces import GpuProbe


def probe(spec: str | None, clock: Clock) -> GpuProbe:
    """Return the probe of the described GPUs if there is a description, else of this machine's devices.

    Raises BadDeviceSpec.
    """
    return NvmlProbe(clock) if spec is None else DescribedProbe(clock, spec)
