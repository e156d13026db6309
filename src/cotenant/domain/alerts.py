"""Alerts, which operators get without asking."""

from dataclasses import dataclass
from enum import StrEnum


class AlertKind(StrEnum):
    """What is wrong."""

    MEMORY_HIGH = "memory_high"
    CARD_LOST = "card_lost"
    GPU_FAULT = "gpu_fault"
    RESTART_LOOP = "restart_loop"
    ENGINE_HUNG = "engine_hung"
    OUT_OF_MEMORY = "out_of_memory"
    NODE_SILENT = "node_silent"
    NODE_LOST = "node_lost"
    NODE_TWICE = "node_twice"
    NODE_VERSION = "node_version"
    NODE_CLOCK = "node_clock"
    NODE_LEASE = "node_lease"
    LAUNCHER_DOWN = "launcher_down"


@dataclass(frozen=True, slots=True)
class Alert:
    """A problem that began (`active`) or ended.

    `subject` is the card, model or container, by its display name; `at` is seconds of the daemon's clock.
    """

    kind: AlertKind
    subject: str
    at: float
    active: bool
    text: str
