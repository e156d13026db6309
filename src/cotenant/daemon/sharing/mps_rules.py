"""The settings of MPS, and what this machine has for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.daemon.core.fleet import may_use
from cotenant.domain.devices import Device, MpsGroup, MpsMode
from cotenant.hardware.mps.control import find_program, no_program
from cotenant.hardware.mps.discovery import FoundDaemon, find_daemons


@dataclass(frozen=True, slots=True)
class MpsRules:
    """When engines run under MPS, and with what.

    `program` is None if this machine has none; `found` are the daemons that run already.
    """

    mode: MpsMode
    group: MpsGroup
    program: Path | None
    state_dir: Path
    max_loaded: int | None = None
    found: tuple[FoundDaemon, ...] = ()

    @classmethod
    def of(
        cls, configuration: Configuration, state_dir: Path, environ: Mapping[str, str] | None = None
    ) -> MpsRules:
        """Collect the rules. Raises MpsMissing if MPS is required and there is no control program."""
        variables = os.environ if environ is None else environ
        devices = configuration.devices
        program = None if devices.mps is MpsMode.OFF else find_program(variables)
        if program is None and devices.mps is MpsMode.REQUIRED:
            raise no_program(variables)
        max_loaded = configuration.scheduling.max_loaded
        found = () if program is None else tuple(find_daemons(program, state_dir, variables))
        return cls(devices.mps, devices.mps_group, program, state_dir, max_loaded, found)


def wanted_by(models: Sequence[ModelEntry], device: Device) -> int:
    """Count the models that may be loaded onto a device."""
    return sum(entry.recipe.n_gpu_layers != 0 and may_use(entry.gpus, device) for entry in models)
