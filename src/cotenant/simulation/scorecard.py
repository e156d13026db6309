"""How a replay went: for all requests, and model by model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.domain.residencies import UnloadReason
from cotenant.simulation.outcome import ModelAccount
from cotenant.simulation.workload import quantile
from cotenant.simulation.world import Client, World

_TRIFLE_S: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds from arrival to the grant of a slot; `share` is how many waited at all, from 0 to 1."""

    share: float
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, waits: Iterable[float]) -> Waits:
        """Sum up waits in any order; zeros for none."""
        ordered = sorted(waits)
        count = max(1, len(ordered))
        return cls(
            sum(wait > _TRIFLE_S for wait in ordered) / count,
            sum(ordered) / count,
            p50_s=quantile(ordered, 0.5),
            p95_s=quantile(ordered, 0.95),
            p99_s=quantile(ordered, 0.99),
            max_s=ordered[-1] if ordered else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Score:
    """Requests and how they fared, and what was loaded for them.

    `refused` counts by RefusalCode, `unloads` by UnloadReason; `loaded_s` is for how long engines were ready,
    added up.
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
        """Requests that were not answered."""
        return sum(self.refused.values())

    @property
    def evictions(self) -> int:
        """Unloads that made room for another model."""
        return self.unloads.get(UnloadReason.EVICTED, 0)

    @property
    def all_unloads(self) -> int:
        """Unloads for whatever reason."""
        return sum(self.unloads.values())


@dataclass(frozen=True, slots=True)
class Scorecard:
    """A whole replay of `span_s`. `models` has a Score for each, by name.

    `held_share` is how much of the cards' memory, over time, loaded models held; `idle_share` how much of
    that was of models that served nobody. Shares are from 0 to 1.
    """

    total: Score
    models: Mapping[str, Score]
    span_s: float
    held_share: float
    idle_share: float

    @property
    def worst_model(self) -> str | None:
        """The model whose requests waited longest on average; None if none waited."""
        waited = {name: score.waits.mean_s for name, score in self.models.items() if score.waits.mean_s}
        return max(waited, key=lambda name: waited[name], default=None)


def score(world: World) -> Scorecard:
    """Sum up a world that has run to its end."""
    account = world.close_account()
    span_s = world.agenda.now
    by_model: dict[str, list[Client]] = {name: [] for name in world.models}
    for client in world.clients.values():
        by_model[client.request.model].append(client)
    room = sum(card.total_bytes or 0 for card in world.machine.cards) * span_s
    return Scorecard(
        _score([*world.clients.values()], [*account.models.values()]),
        {name: _score(clients, [account.of(name)]) for name, clients in by_model.items()},
        span_s,
        account.ready_byte_s / room if room else 0.0,
        account.idle_byte_s / account.ready_byte_s if account.ready_byte_s else 0.0,
    )


def _score(clients: Sequence[Client], accounts: Sequence[ModelAccount]) -> Score:
    waits = [c.granted_at - c.request.at for c in clients if c.granted_at is not None]
    unloads: Counter[str] = Counter()
    for account in accounts:
        unloads.update(account.unloads)
    return Score(
        requests=len(clients),
        answered=len(waits),
        refused=Counter(str(client.refusal) for client in clients if client.refusal is not None),
        waits=Waits.of(waits),
        loads=sum(account.loads for account in accounts),
        loaded_bytes=sum(account.loaded_bytes for account in accounts),
        unloads=unloads,
        loaded_s=sum(account.ready_s for account in accounts),
    )
