"""GPUs from a description, used instead of those of this machine."""

import uuid
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from cotenant.clock import Clock
from cotenant.domain.devices import Device, DeviceId, DeviceKind, Inventory, Reading
from cotenant.domain.errors import BadDeviceSpec
from cotenant.domain.vendors import InventorySource, Vendor
from cotenant.hardware.gpus.described_entry import (
    EXAMPLE,
    FILE_SUFFIXES,
    MAX_DEVICES,
    DescribedGpu,
    parse_entry,
    read_entries,
    read_file,
)

_NAMESPACE = uuid.UUID("6fb4c1de-3c0f-5d1e-9d5a-0c7e9b1f2a34")


class DescribedProbe:
    """Reports the GPUs of a description, with the memory in use that it states.

    `spec` is a comma-separated list (`24GiB,2xRTX 3090,RTX A400:4094:329`) or a YAML file's path. Raises
    BadDeviceSpec on construction.

    A file that says `live: true` is followed: it is read again for each inventory, so that its writer
    acts as the driver. While it is invalid, its last valid content is used and the problem is reported.

    Without `files` no file is read: for a spec from an untrusted source.
    """

    def __init__(self, clock: Clock, spec: str, *, files: bool = True) -> None:
        self._clock = clock
        self._file = _file_of(spec) if files else None
        entries = (
            (f"GPU description, entry {number} ({text.strip()[:60]!r})", text)
            for number, text in enumerate(spec.split(","), start=1)
        )
        gpus, self._live = (
            read_file(self._file) if self._file else (read_entries(entries, parse_entry), False)
        )
        self._gpus = _identified(gpus)

    def inventory(self) -> Inventory:
        """Return the described devices, as if measured now."""
        at = self._clock.now()
        problems: tuple[str, ...] = ()
        if self._live and self._file is not None:
            try:
                self._gpus = _identified(read_file(self._file)[0])
            except BadDeviceSpec as error:
                problems = (f"{error.message}: its last content is used.",)
        devices = tuple(
            Device(
                id_,
                DeviceKind.MIG if id_.startswith("MIG-") else DeviceKind.GPU,
                index=index,
                described=True,
                **_described(gpu, Device),
                # Planned like NVIDIA's GPUs: with compute modes, MIG and MPS.
                vendor=Vendor.NVIDIA,
            )
            for index, (id_, gpu) in enumerate(self._gpus)
        )
        readings = {
            id_: Reading(id_, at=at, free_bytes=gpu.total_bytes - gpu.used_bytes, **_described(gpu, Reading))
            for id_, gpu in self._gpus
        }
        source = InventorySource.FOLLOWED if self._live else InventorySource.DESCRIBED
        return Inventory(source, devices, readings, problems=problems)


def _described(gpu: DescribedGpu, owner: type[Device] | type[Reading]) -> dict[str, Any]:
    """Return the fields of a device or its reading that a description has too."""
    return {each.name: getattr(gpu, each.name) for each in fields(owner) if hasattr(gpu, each.name)}


def _file_of(spec: str) -> Path | None:
    named = spec.strip().lower().endswith(FILE_SUFFIXES)
    try:
        return Path(spec.strip()) if named or Path(spec).is_file() else None
    except (OSError, ValueError):
        return None


def _identified(gpus: Iterable[tuple[str, DescribedGpu]]) -> tuple[tuple[DeviceId, DescribedGpu], ...]:
    """Give each GPU a UUID with distinct first digits, which the same description always produces."""
    found: dict[DeviceId, DescribedGpu] = {}
    for where, gpu in gpus:
        index = len(found)
        if index == MAX_DEVICES:
            raise BadDeviceSpec(f"{where}: more than {MAX_DEVICES} GPUs", hint=EXAMPLE)
        derived = f"GPU-{uuid.uuid5(_NAMESPACE, f'{index}:{gpu.name}:{gpu.total_bytes}')}"
        id_ = DeviceId(gpu.uuid or derived)
        if id_ in found:
            raise BadDeviceSpec(f"{where}: the UUID {id_} is there twice", hint="Each GPU has its own UUID.")
        found[id_] = gpu
    return tuple(found.items())
