"""Totals of a simulation: loads, unloads and memory over time."""

from collections import Counter
from dataclasses import dataclass, field

from cotenant.domain.decisions import Decision


@dataclass(slots=True)
class ModelTotals:
    """Totals of one model; `ready_s` is how long its engines were ready, busy or not."""

    loads: int = 0
    loaded_bytes: int = 0
    ready_s: float = 0.0
    unloads: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Totals:
    """Totals of a run; byte seconds count ready engines, the idle ones those without requests."""

    loads: int = 0
    loaded_bytes: int = 0
    out_of_memory: int = 0
    ready_byte_s: float = 0.0
    idle_byte_s: float = 0.0
    models: dict[str, ModelTotals] = field(default_factory=dict)

    def of(self, model: str) -> ModelTotals:
        """Return the totals of one model."""
        return self.models.setdefault(model, ModelTotals())

    def load(self, model: str, count: int) -> None:
        """Count a load."""
        self.loads += 1
        self.loaded_bytes += count
        own = self.of(model)
        own.loads += 1
        own.loaded_bytes += count

    def was_ready(self, model: str, count: int, ready_s: float, busy_s: float) -> None:
        """Count the time that an engine of `count` bytes was ready."""
        self.ready_byte_s += count * ready_s
        self.idle_byte_s += count * (ready_s - busy_s)
        self.of(model).ready_s += ready_s

    def count_unload(self, decision: Decision) -> None:
        """Count a decision to unload a model, by its reason."""
        reason = decision.facts.get("reason")
        if reason is not None and decision.model is not None:
            self.of(decision.model).unloads[str(reason)] += 1
