"""Putting the parts of GPU configuration together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cotenant.domain.devices import DeviceId
from cotenant.interfaces import GpuProbe, Operator
from cotenant.services.compose.orchestrator import ComposeOrchestrator
from cotenant.services.interfaces import ServiceStore
from cotenant.services.operator import Services
from cotenant.services.settings import ServicesSettings


def services_of(
    settings: ServicesSettings, book: ServiceStore, probe: GpuProbe, operator: Operator, state_dir: Path
) -> Services:
    """Return the operator of the services in `settings`, which keeps its notes under `state_dir`."""

    def claims() -> Mapping[DeviceId, int]:
        return {DeviceId(device.uuid): device.claimed_bytes for device in operator.devices()}

    orchestrator = ComposeOrchestrator(
        settings.compose_files,
        output_dir=settings.output_dir,
        state_dir=state_dir / "services",
        command=settings.command,
        project=settings.project,
        device_names=settings.device_ids,
        parallel=settings.parallel,
        command_timeout_s=settings.command_timeout_s,
    )
    return Services(settings, book, orchestrator, probe.inventory, claims)
