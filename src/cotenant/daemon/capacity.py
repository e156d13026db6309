"""Where each model would be placed alone, and how many the daemon would hold at the same time."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.daemon.core.fleet import spec_of, wanting
from cotenant.daemon.monitors.readings import device_readings
from cotenant.domain.devices import ComputeMode, DeviceId, DeviceKind, Inventory, MpsMode
from cotenant.domain.placements import Placement, Refusal
from cotenant.domain.residencies import ResidencyId
from cotenant.hardware.mps.program import find_program
from cotenant.planning.compute_modes import Admission
from cotenant.planning.device_choice import choose_devices
from cotenant.planning.host_memory import placement_bytes
from cotenant.planning.ledger import DeviceReading, Ledger
from cotenant.scheduling.model_spec import ModelSpec
from cotenant.state_dir import state_dir


@dataclass(frozen=True, slots=True)
class ModelOutlook:
    """A model planned on devices without other models. `needed_bytes` is None if it is unknown."""

    model: ModelEntry
    result: Placement | Refusal
    needed_bytes: int | None
    missing_bytes: int


@dataclass(frozen=True, slots=True)
class Peak:
    """All models at once against what the devices offer, in bytes.

    `together` fit at the same time, loaded in this order; `waiting` fit, but not in addition to those;
    `nowhere` do not fit even alone. `left` is what may still be planned on each device after each of
    `together`, `warnings` name the cards that admit only one engine.
    """

    alone: tuple[ModelOutlook, ...]
    needed_bytes: int
    offered_bytes: int
    devices: str
    together: tuple[str, ...]
    waiting: tuple[str, ...]
    nowhere: tuple[str, ...]
    left: tuple[Mapping[str, int], ...]
    warnings: tuple[str, ...]


def peak(configuration: Configuration, inventory: Inventory, *, use_fit_params: bool = False) -> Peak:
    """Place as many models as fit at the same time: pinned and preloaded ones first, then the largest.

    If more fit when the smallest come first, they do. What the engines of the daemon at the configured port
    hold already counts as free. Raises MpsMissing.
    """
    models, rules = configuration.models, configuration.devices.rules
    most = configuration.scheduling.max_loaded
    ours = _our_processes(inventory, configuration.server.port)
    admissions, warnings = _admissions(configuration, inventory, ours)
    engines = {pid: ResidencyId(-1 - number) for number, pid in enumerate(ours)}
    readings = [*map(_emptied, device_readings(inventory, rules, engines, 0.0, admissions))]
    specs = {each.name: spec_of(each, rules, None, use_fit_params=use_fit_params) for each in models}

    def empty() -> Ledger:
        ledger = Ledger(rules.reserve_bytes)
        ledger.read(readings)
        return ledger

    alone = {entry.name: _outlook(entry, _place(specs[entry.name], empty())) for entry in models}
    fills = []
    for sign in (-1, 1):
        # Loaded as the scheduler does it (`scheduling.placing`).
        ledger, left = empty(), dict[str, dict[str, int]]()

        def rank(entry: ModelEntry, sign: int = sign) -> tuple[bool, bool, int]:
            return not entry.pinned, not entry.preload, sign * (alone[entry.name].needed_bytes or 0)

        for name in (entry.name for entry in sorted(models, key=rank)):
            result = _place(specs[name], ledger)
            taken = {} if isinstance(result, Refusal) else placement_bytes(result)
            loaded = sum(bool(claim.bytes_by_device) for claim in ledger.claims.values())
            if isinstance(result, Placement) and not (taken and loaded == most):
                ledger.claim(ResidencyId(len(left)), taken)
                budgets = (ledger.budget(device, any_number=True) for device in ledger.readings)
                left[name] = {budget.device.label: budget.budget_bytes for budget in budgets}
        fills.append(left)
    together = max(fills, key=len)
    nowhere = tuple(name for name, each in alone.items() if isinstance(each.result, Refusal))
    usable = [budget for budget in empty().budgets() if budget.left_out is None]
    cards = sum(budget.device.kind is not DeviceKind.HOST for budget in usable)
    return Peak(
        tuple(alone.values()),
        needed_bytes=sum(outlook.needed_bytes or 0 for outlook in alone.values()),
        offered_bytes=sum(budget.budget_bytes for budget in usable),
        devices=f"{cards} GPUs" if cards > 1 else "1 GPU" if cards else "host RAM" if usable else "no device",
        together=tuple(together),
        waiting=tuple(name for name in alone if name not in {*together, *nowhere}),
        nowhere=nowhere,
        left=tuple(together.values()),
        warnings=warnings,
    )


def _our_processes(inventory: Inventory, port: int) -> Collection[int]:
    """Return the processes on devices that are engines of the daemon at a port."""
    seen = [each.pid for reading in inventory.readings.values() for each in reading.processes or ()]
    if not seen:
        return ()
    # Its imports are a good part of a short command, which mostly has no use for them.
    from cotenant.engines.process.marks import marked

    return marked(seen, port)


def _admissions(
    configuration: Configuration, inventory: Inventory, ours: Collection[int]
) -> tuple[Mapping[DeviceId, Admission], tuple[str, ...]]:
    """Return how many engines each device admits, any number where it is not said, and warnings.

    Where nothing can share cards and each admits any number, what shares them is not imported.
    """
    devices, most = configuration.devices, configuration.scheduling.max_loaded
    exclusive = (each.compute_mode is ComputeMode.EXCLUSIVE_PROCESS for each in inventory.readings.values())
    program = None if devices.mps is MpsMode.OFF else find_program(os.environ)
    if program is None and devices.mps is not MpsMode.REQUIRED and not any(exclusive):
        return {}, ()
    from cotenant.sharing.mps import MpsRules, Sharing

    sharing = Sharing(MpsRules.of_machine(devices.mps, devices.mps_group, most, state_dir()))
    wanted = wanting(configuration.models)
    return sharing.admissions(inventory, ours, wanted), sharing.warnings(inventory, ours, wanted)


def _place(spec: ModelSpec, ledger: Ledger) -> Placement | Refusal:
    chosen = choose_devices(spec.fit, ledger.budgets(), ledger.claimed_devices(), together=spec.together)
    return ledger.on_host(chosen)


def _outlook(entry: ModelEntry, result: Placement | Refusal) -> ModelOutlook:
    if isinstance(result, Placement):
        on_devices = sum(share.parts.total for share in result.used_shares)
        return ModelOutlook(entry, result, on_devices or result.host.total, 0)
    needed = sum(shortfall.needed_bytes for shortfall in result.shortfalls) or None
    return ModelOutlook(entry, result, needed, sum(each.missing_bytes for each in result.shortfalls))


def _emptied(reading: DeviceReading) -> DeviceReading:
    """Return a Reading as if none of our engines ran."""
    free, foreign = reading.free_bytes, reading.foreign_bytes
    if free is not None and foreign is not None:
        free = max(0, reading.capacity_bytes - foreign)
    return replace(reading, live=False, free_bytes=free)
