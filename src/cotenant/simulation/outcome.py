"""What a run of a simulated world came to, in all and per model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cotenant.domain.decisions import Decision


@dataclass(slots=True)
class ModelAccount:
    """One model's part of it; `ready_s` is how long its engines were ready, busy or not."""

    loads: int = 0
    loaded_bytes: int = 0
    ready_s: float = 0.0
    unloads: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Account:
    """What a run came to; byte seconds are of engines that were ready, idle ones those that nobody used."""

    loads: int = 0
    loaded_bytes: int = 0
    out_of_memory: int = 0
    ready_byte_s: float = 0.0
    idle_byte_s: float = 0.0
    models: dict[str, ModelAccount] = field(default_factory=dict)

    def of(self, model: str) -> ModelAccount:
        """Return one model's part."""
        return self.models.setdefault(model, ModelAccount())

    def load(self, model: str, count: int) -> None:
        """Count a load of so many bytes."""
        self.loads += 1
        self.loaded_bytes += count
        own = self.of(model)
        own.loads += 1
        own.loaded_bytes += count

    def was_ready(self, model: str, count: int, ready_s: float, busy_s: float) -> None:
        """Count an engine that held so many bytes."""
        self.ready_byte_s += count * ready_s
        self.idle_byte_s += count * (ready_s - busy_s)
        self.of(model).ready_s += ready_s

    def hear(self, decision: Decision) -> None:
        """Count a decision by which a model goes, under its reason."""
        reason = decision.facts.get("reason")
        if reason is not None and decision.model is not None:
            self.of(decision.model).unloads[str(reason)] += 1
