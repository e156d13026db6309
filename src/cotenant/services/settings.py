"""How services are pinned and recreated, as the operator configured it."""

from dataclasses import dataclass
from pathlib import Path

from cotenant.services.model import DeviceNames, OnFailure, Service, Strategy


@dataclass(frozen=True, slots=True)
class ServicesSettings:
    """The containers that are pinned to GPUs, and how they are recreated.

    `command` is the argument vector of the compose command, None to find one; `project` is the name of its
    project, None to let compose choose. Generated files go to `output_dir`. `parallel` bounds how many
    services are recreated at once, `command_timeout_s` one run of the compose command.
    """

    compose_files: tuple[Path, ...]
    output_dir: Path
    command: tuple[str, ...] | None = None
    project: str | None = None
    strategy: Strategy = Strategy.VRAM_BASED
    items: tuple[Service, ...] = ()
    device_ids: DeviceNames = DeviceNames.INDEX
    on_failure: OnFailure = OnFailure.ROLLBACK
    parallel: int = 2
    command_timeout_s: float = 300.0
