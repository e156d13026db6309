"""Free memory in pieces: how much of it no model can use, and what would change that."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SizedModel:
    """A model and the bytes that it takes of its devices."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class DeviceFragmentation:
    """A device's part of a Fragmentation: its ratio, and its bytes that no model could use."""

    ratio: float
    stranded_bytes: int


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """How much of the free memory models that are not loaded cannot use (`planning/fragmentation`).

    `ratio` is the share of `free_bytes` that the next model to load cannot use, from 0 to 1.
    `stranded_bytes` are those that none of them could use. `largest` is the largest that fits now, and
    `largest_in_one_piece` the largest that would if the free memory were on one device; None if none does.
    """

    ratio: float = 0.0
    free_bytes: int = 0
    stranded_bytes: int = 0
    largest: SizedModel | None = None
    largest_in_one_piece: SizedModel | None = None
    by_device: Mapping[str, DeviceFragmentation] = field(default_factory=dict)
