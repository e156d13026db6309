"""Results of a replay, in total and by model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cotenant.domain.residencies import UnloadReason
from cotenant.simulation.models import Client, quantile
from cotenant.simulation.totals import ModelTotals
from cotenant.simulation.world import World


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds from arrival to the grant of a slot; `share` is the fraction of requests that waited."""

    share: float
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, waits: Iterable[float]) -> Waits:
        """Summarize waits in any order; zeros for none."""
        ordered = sorted(waits)
        count = max(1, len(ordered))
        return cls(
            sum(wait > 1e-6 for wait in ordered) / count,
            sum(ordered) / count,
            p50_s=quantile(ordered, 0.5),
            p95_s=quantile(ordered, 0.95),
            p99_s=quantile(ordered, 0.99),
            max_s=ordered[-1] if ordered else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """Requests, their waits, and the loads that they caused.

    `refused` counts by RefusalCode, `unloads` by UnloadReason; `loaded_s` is the sum of the times that
    engines were ready.
    """

    requests: int
    answered: int
    refused: Mapping[str, int]
    waits: Waits
    loads: int
    loaded_bytes: int
    unloads: Mapping[str, int]
    loaded_s: float

    @property
    def refusals(self) -> int:
        """The number of requests that were not answered."""
        return sum(self.refused.values())

    @property
    def evictions(self) -> int:
        """The number of unloads that made room for another model."""
        return self.unloads.get(UnloadReason.EVICTED, 0)

    @property
    def all_unloads(self) -> int:
        """The number of all unloads."""
        return sum(self.unloads.values())

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "evictions": self.evictions}


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A replay of `span_s` seconds; `models` has a Summary for each model, by name.

    `held_share` is the share of the cards' memory, over time, that loaded models held; `idle_share` the share
    of that which belonged to models without requests. Shares are from 0 to 1.
    """

    total: Summary
    models: Mapping[str, Summary]
    span_s: float
    held_share: float
    idle_share: float

    @property
    def worst_model(self) -> str | None:
        """The model whose requests waited longest on average; None if none waited."""
        waited = {name: score.waits.mean_s for name, score in self.models.items() if score.waits.mean_s}
        return max(waited, key=lambda name: waited[name], default=None)


def summarize(world: World) -> ReplayResult:
    """Return the results of a world that has run to its end."""
    totals = world.final_totals()
    span_s = world.queue.now
    by_model: dict[str, list[Client]] = {name: [] for name in world.models}
    for client in world.clients.values():
        by_model[client.request.model].append(client)
    room = sum(card.total_bytes or 0 for card in world.machine.cards) * span_s
    return ReplayResult(
        _summary([*world.clients.values()], [*totals.models.values()]),
        {name: _summary(clients, [totals.of(name)]) for name, clients in by_model.items()},
        span_s,
        totals.ready_byte_s / room if room else 0.0,
        totals.idle_byte_s / totals.ready_byte_s if totals.ready_byte_s else 0.0,
    )


def _summary(clients: Sequence[Client], totals: Sequence[ModelTotals]) -> Summary:
    waits = [c.granted_at - c.request.at for c in clients if c.granted_at is not None]
    unloads = sum((each.unloads for each in totals), Counter[str]())
    return Summary(
        requests=len(clients),
        answered=len(waits),
        refused=dict(Counter(str(c.refusal) for c in clients if c.refusal is not None)),
        waits=Waits.of(waits),
        loads=sum(each.loads for each in totals),
        loaded_bytes=sum(each.loaded_bytes for each in totals),
        unloads=dict(unloads),
        loaded_s=sum(each.ready_s for each in totals),
    )
