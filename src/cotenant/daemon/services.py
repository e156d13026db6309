"""Assembles the parts of GPU configuration."""

from collections.abc import Mapping
from pathlib import Path

from cotenant.domain.devices import DeviceId
from cotenant.interfaces import GpuProbe, Operator
from cotenant.services.compose.orchestrator import ComposeOrchestrator
from cotenant.services.interfaces import ServiceStore
from cotenant.services.model import ServicesSettings
from cotenant.services.operator import Services


def services_of(
    settings: ServicesSettings | None,
    store: ServiceStore,
    probe: GpuProbe,
    operator: Operator,
    state_dir: Path,
) -> Services | None:
    """Return the operator of the configured services, with its state under `state_dir`; None without any."""
    if settings is None:
        return None

    def claims() -> Mapping[DeviceId, int]:
        return {DeviceId(device.uuid): device.claimed_bytes for device in operator.devices()}

    orchestrator = ComposeOrchestrator(settings, state_dir / "services")
    return Services(settings, store, orchestrator, probe.inventory, claims)
