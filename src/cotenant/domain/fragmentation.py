"""Free memory in pieces: how much of it no model can use, and what would change that."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class DefragmentMode(StrEnum):
    """What is done with moves that would let a model fit: nothing, they are told, or they are made."""

    OFF = "off"
    ADVISE = "advise"
    AUTO = "auto"


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


@dataclass(frozen=True, slots=True)
class ModelMove:
    """A loaded model moved from its devices to one other, on which it takes `bytes`.

    It is `live` if both places have room at once; else it is unloaded first, and loaded again.
    """

    model: str
    origin: tuple[str, ...]
    to: str
    bytes: int
    live: bool


@dataclass(frozen=True, slots=True)
class Defragmentation:
    """The moves after which `model` fits, in the order in which they can be made; none if it fits already.

    `model` is None if none was named and none would gain. No fewer than `at_least` moves do. If none were
    found that do, `fits` is false; `at_least` is None if it is certain that there are none. `text` says it in
    a sentence.
    """

    model: str | None
    fits: bool
    moves: tuple[ModelMove, ...] = ()
    at_least: int | None = 0
    text: str = ""
