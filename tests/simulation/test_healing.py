"""Law 7: after any faults, whatever is feasible is served again, within a stated bound."""

import os
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

import pytest

from cotenant.domain.residencies import ResidencyState
from cotenant.scheduling import events
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.state import State
from cotenant.simulation.models import Client, Outcome, Request
from cotenant.simulation.world import ContractViolation
from tests.simulation.seeded import ALL_FAULTS, Mover, SeededWorld, seeded_world, wait_bound_s

_SEEDS: Final = int(os.environ.get("COTENANT_SIM_SEEDS", "120"))
_REQUESTS_EACH: Final = 3
_MOVES_EVERY_S: Final = 4.0
_LATER_S: Final = 60.0
_LEFT_OVER_S: Final = 120.0
"""The longest wait of a request from before; memory not yet free, hung engines and slow ends take less."""
_SLOWEST: Final = 24.0
"""The slowest load under way, as a multiple of the usual one."""
_AFTER_A_DEATH_S: Final = 2.0
"""When clients come back whose engine, hung before the healing, was killed."""


@dataclass
class HealingWorld(SeededWorld):
    """A world in which every fault ends; the requests that come then, and when each came first.

    A refused client comes back when the refusal says, which it has to.
    """

    came_at: dict[Request, float] = field(default_factory=dict)

    @classmethod
    def of(cls, seed: int, *, moves: bool = False, copies: bool = False) -> "HealingWorld":
        """Draw a world whose faults end at the last of its requests, and more requests for all its models."""
        seeded = seeded_world(seed, ALL_FAULTS, requests=100, feasible=True, copies=copies)
        return cls.healed(seeded, moves=moves)

    @classmethod
    def healed(cls, seeded: SeededWorld, *, moves: bool = False) -> "HealingWorld":
        """Have the faults of a feasible world end with its requests, and more come for all its models."""
        healing = cls(**vars(seeded))
        world, rng, healed_at = healing.world, Random(seeded.seed), healing.last_at_s
        for name, model in world.scheduler.state.models.items():
            if model.spec.pinned:
                world.send(events.LoadAsked(0.0, name, "loaded at start"))
        # Nobody asks for a model that is to stay loaded.
        names = [name for name in world.models if not world.scheduler.state.models[name].spec.pinned]
        later = [
            Request(healed_at + 1 + rng.uniform(0, _LATER_S), name, 100, 30)
            for name in names * _REQUESTS_EACH
        ]
        later.sort(key=lambda request: request.at)
        healing.came_at = {request: request.at for request in later}
        models, settings = world.models.values(), world.scheduler.state.settings
        healing.wait_bound_s = (
            max(_LEFT_OVER_S, _SLOWEST * max(model.load_s for model in models))
            + settings.backoff_limit_s
            + wait_bound_s(models, settings, len(later))
        )
        healing.last_at_s = later[-1].at + healing.wait_bound_s
        world.on_end = healing._come_back
        if moves:
            # Cards that are drained are undrained soon, which counts as under way.
            Mover(replace(healing, last_at_s=healed_at), _MOVES_EVERY_S, drains=True)
        world.queue.at(healed_at, healing._heal)
        world.expect(later)
        return healing

    def _heal(self) -> None:
        now, models = self.world.queue.now, self.world.scheduler.state.models
        self.world.heal()
        for name in [name for name, model in models.items() if model.pinned and not model.spec.pinned]:
            self.world.send(events.PinAsked(now, name, pinned=False))

    def _come_back(self, client: Client) -> None:
        if client.outcome is Outcome.SERVED or client.request not in self.came_at:
            return
        came_at = self.came_at.pop(client.request)
        if client.outcome is Outcome.BROKEN:
            client.retry_after_s = _AFTER_A_DEATH_S
        if client.retry_after_s is None:
            raise ContractViolation(f"law 7: {client} is refused without a time to come back")
        again = replace(client.request, at=self.world.queue.now + client.retry_after_s)
        self.came_at[again] = came_at
        self.world.expect([again])

    def check_end(self) -> None:
        super().check_end()
        for client in self.world.clients.values():
            came_at = self.came_at.get(client.request)
            if came_at is None:
                continue
            if client.outcome is not Outcome.SERVED or client.granted_at is None:
                raise ContractViolation(f"law 7: {client} was not served after all faults had ended")
            wait_s = client.granted_at - came_at
            if wait_s > self.wait_bound_s:
                raise ContractViolation(f"law 7: {client} waited {wait_s:.0f} s of {self.wait_bound_s:.0f} s")
        queue, until_s = self.world.queue, self.last_at_s + self.wait_bound_s
        while not _all_pinned_are_ready(self.world.scheduler.state):
            queue.step()
            if queue.now > until_s:
                raise ContractViolation("law 7: a model that is to stay loaded is not loaded again")


def _all_pinned_are_ready(state: State) -> bool:
    """Whether what is to stay is loaded, by the daemon of the moment: another one may begin meanwhile."""
    return all(_is_ready(state, model) for model in state.models.values() if model.spec.pinned)


def _is_ready(state: State, model: ModelState) -> bool:
    residency = state.residency_of(model)
    return residency is not None and residency.state is ResidencyState.READY


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_after_all_faults_every_feasible_request_is_served_within_the_bound() -> None:
    for seed in range(_SEEDS):
        HealingWorld.of(seed).run()


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_after_moves_and_drains_among_the_faults_the_same_holds() -> None:
    for seed in range(_SEEDS // 8):
        HealingWorld.of(seed, moves=True).run()
