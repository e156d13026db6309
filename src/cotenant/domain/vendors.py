"""Vendors of GPUs, and what the rest of the program must know about each (docs/extending.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Vendor(StrEnum):
    """Whose driver measures a GPU, and whose runtime computes on it."""

    NVIDIA = "nvidia"
    AMD = "amd"

    @property
    def traits(self) -> VendorTraits:
        """What the rest of the program must know about this vendor."""
        return VENDOR_TRAITS[self]


class InventorySource(StrEnum):
    """Where the devices of an inventory come from."""

    NVML = "nvml"
    AMDSMI = "amdsmi"
    DESCRIBED = "described"
    FOLLOWED = "followed"
    HOST = "host"

    @property
    def is_live(self) -> bool:
        """Whether Readings show what engines take: a driver measures, or a file is read again and again."""
        return self not in (InventorySource.DESCRIBED, InventorySource.HOST)

    @property
    def is_described(self) -> bool:
        """Whether the devices are only described."""
        return self in (InventorySource.DESCRIBED, InventorySource.FOLLOWED)


@dataclass(frozen=True, slots=True)
class Allotment:
    """How a batch system allots GPUs to a process: the first of `variables` that is set lists them.

    If `by_place`, numbers count the GPUs that earlier variables leave, else they are the driver's indices.
    """

    variables: tuple[str, ...]
    by_place: bool = False


@dataclass(frozen=True, slots=True)
class VendorTraits:
    """The properties of one vendor's GPUs.

    `backend` is what llama.cpp calls its devices, and `cotenant engine install` the engine for them.
    `environment` returns the variables that show a process only the GPUs of these names, numbered from 0;
    `hidden` are those that hide all. `allotments` apply one after another.
    """

    backend: str
    environment: Callable[[Sequence[str]], Mapping[str, str]]
    hidden: Mapping[str, str]
    allotments: tuple[Allotment, ...] = ()


def _cuda(names: Sequence[str]) -> Mapping[str, str]:
    return {
        # Without it CUDA numbers the fastest card first, and what an engine prints cannot be compared.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # UUIDs, since indices move between boots. `-1` is CUDA's documented way to end the list; an empty
        # value does the same, but shells and container runtimes drop it.
        "CUDA_VISIBLE_DEVICES": ",".join(names) or "-1",
    }


def _rocm(names: Sequence[str]) -> Mapping[str, str]:
    numbers = ",".join(str(number) for number in range(len(names)))
    return {
        "ROCR_VISIBLE_DEVICES": ",".join(names),
        # HIP renumbers what ROCr leaves, and reads CUDA's variable where its own is missing: both are set,
        # and alike, as some engines refuse to start where they differ.
        "HIP_VISIBLE_DEVICES": numbers,
        "CUDA_VISIBLE_DEVICES": numbers,
    }


VENDOR_TRAITS: Final[Mapping[Vendor, VendorTraits]] = {
    Vendor.NVIDIA: VendorTraits(
        backend="cuda",
        environment=_cuda,
        hidden=_cuda(()),
        allotments=(Allotment(("CUDA_VISIBLE_DEVICES",)),),
    ),
    Vendor.AMD: VendorTraits(
        backend="rocm",
        environment=_rocm,
        hidden={"HIP_VISIBLE_DEVICES": "-1"},
        # What HIP reads counts within what ROCr leaves.
        allotments=(
            Allotment(("ROCR_VISIBLE_DEVICES",)),
            Allotment(("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"), by_place=True),
        ),
    ),
}
