"""A configuration to replay a log with: cards, policy, models and their settings."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from cotenant.domain.devices import Device
from cotenant.domain.placements import Placement, Refusal
from cotenant.planning.device_choice import choose_devices
from cotenant.planning.ledger import Ledger
from cotenant.scheduling.events import LoadAsked
from cotenant.scheduling.model_spec import ModelSpec, SchedulerSettings
from cotenant.scheduling.policy import Policy, Victim
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.closed_loop import Clients, Turn
from cotenant.simulation.machine import Machine
from cotenant.simulation.models import Request, SimulatedModel, speed_of
from cotenant.simulation.results import ReplayResult, summarize
from cotenant.simulation.world import World

Progress = Callable[[float], None]
"""Called with the progress of a replay, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A model to serve: its scheduler spec and its actual behaviour.

    `patience_s` is the longest wait of a request that states none. `tokens_per_s` is the speed of one
    request; None computes it from the model's size and the cards' memory. If given, it replaces the measured
    service time of every request whose tokens are known. Requests take `slowdown` times as long as that.
    """

    spec: ModelSpec
    patience_s: float
    tokens_per_s: float | None = None
    preload: bool = False
    slowdown: float = 1.0


@dataclass(frozen=True, slots=True)
class Variant:
    """Cards, all of whose `total_bytes` may be used, with the models to serve and the scheduler's settings.

    `clairvoyant` replaces the policy with one that knows the log.
    """

    name: str
    cards: tuple[Device, ...]
    settings: SchedulerSettings
    tenants: tuple[Tenant, ...]
    clairvoyant: bool = False

    def refusals(self) -> Iterator[Refusal]:
        """Yield a refusal for each model that does not fit even on empty cards."""
        for tenant in self.tenants:
            result = self._plan(tenant)
            if isinstance(result, Refusal):
                yield result

    def run(
        self,
        requests: Sequence[Request],
        clients: Clients | None = None,
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> ReplayResult:
        """Replay requests, in order of arrival, or have clients ask, and return the results.

        Load times and clients vary by `seed`.
        """
        return summarize(self.replay(requests, clients, seed=seed, progress=progress))

    def replay(
        self,
        requests: Sequence[Request],
        clients: Clients | None = None,
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> World:
        """Replay requests and return the world at its end; its clients are in the order of the requests."""
        policy = foresight(requests) if self.clairvoyant else None
        models = [self._model(tenant) for tenant in self.tenants]
        world = World(
            Scheduler(self.settings, policy), Machine(self.cards), models, Random(seed), watched=False
        )
        world.begin([tenant.spec for tenant in self.tenants])
        for tenant in self.tenants:
            if tenant.preload:
                world.send(LoadAsked(0.0, tenant.spec.name))
        world.expect(self._for_tenants(requests))
        end = requests[-1].at if requests else 0.0
        if clients is not None:
            end = clients.until
            by_size = sorted(models, key=lambda model: -model.bytes)
            for turns in clients.draw([model.name for model in by_size], seed):
                world.visit(map(self._for_tenant, turns), end)
        while world.run(steps=2000):
            if progress is not None:
                progress(min(1.0, world.queue.now / end) if end else 1.0)
        return world

    def _for_tenants(self, requests: Sequence[Request]) -> list[Request]:
        """Fill in patience, priority and service time from the tenants."""
        tenants = {tenant.spec.name: tenant for tenant in self.tenants}
        found = []
        for request in requests:
            tenant = tenants[request.model]
            by_tokens = tenant.tokens_per_s is not None and request.output_tokens > 0
            service_s = None if by_tokens else request.service_s
            found.append(
                replace(
                    request,
                    patience_s=tenant.patience_s if request.patience_s is None else request.patience_s,
                    priority=tenant.spec.priority if request.priority is None else request.priority,
                    service_s=None if service_s is None else service_s * tenant.slowdown,
                )
            )
        return found

    def _for_tenant(self, turn: Turn) -> Turn:
        return replace(turn, request=self._for_tenants([turn.request])[0])

    def _plan(self, tenant: Tenant) -> Placement | Refusal:
        ledger = Ledger(self.settings.reserve_bytes)
        for node, readings in Machine(self.cards).readings(0.0):
            ledger.read(readings, node)
        return choose_devices(tenant.spec.fit, ledger.budgets(), (), together=tenant.spec.together)

    def _model(self, tenant: Tenant) -> SimulatedModel:
        planned = self._plan(tenant)
        pieces: tuple[int, ...] = ()
        if isinstance(planned, Placement):
            pieces = tuple(share.parts.total for share in planned.used_shares)
        bandwidths = (card.bandwidth_bytes_per_s for card in self.cards if card.bandwidth_bytes_per_s)
        slowest = min(bandwidths, default=None)
        prefill_per_s, decode_per_s = speed_of(sum(pieces), slowest, tenant.tokens_per_s)
        return SimulatedModel(
            tenant.spec.name,
            pieces,
            load_s=tenant.spec.load_s,
            prefill_per_s=prefill_per_s / tenant.slowdown,
            decode_per_s=decode_per_s / tenant.slowdown,
            slots=tenant.spec.slots,
        )


def foresight(requests: Sequence[Request]) -> Policy:
    """Return the policy that knows when each model is asked for next: the sooner, the more a reload costs.

    It is not the optimum, but shows what better predictions could gain.
    """
    arrivals: dict[str, list[float]] = {}
    for request in requests:
        arrivals.setdefault(request.model, []).append(request.at)

    def cost(victim: Victim) -> float:
        known = arrivals.get(victim.model, [])
        following = bisect_right(known, victim.now)
        if following == len(known):
            return 0.0
        queued_behind = bisect_right(known, known[following] + victim.load_s) - following - 1
        delay = victim.load_s * (1 + queued_behind / 2)
        return delay / max(1.0, known[following] - victim.now)

    return cost
