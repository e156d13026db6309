"""Commands of others that lease memory at random in a seeded world, and take it as they like."""

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Final

from cotenant.domain.devices import DeviceId
from cotenant.domain.residencies import ResidencyId, TicketId
from cotenant.scheduling import events
from cotenant.scheduling.commands import Command, Grant, StartEngine, StopEngine
from cotenant.scheduling.model_spec import ModelSpec
from cotenant.simulation.machine import Driver
from cotenant.simulation.models import Client, Outcome, Request
from cotenant.simulation.world import ContractViolation
from tests.scheduling.harness import fit_whole
from tests.simulation.seeded import SeededWorld

_GB: Final = 10**9


@dataclass
class _Lease:
    ticket: TicketId
    name: str
    residency: ResidencyId | None = None
    device: DeviceId | None = None
    bytes: int = 0
    ended: bool = False


@dataclass
class Guests:
    """Asks for a lease every `every_s` or so. An `honest` guest takes no more than it leases."""

    seeded: SeededWorld
    every_s: float
    honest: bool = True
    outcomes: Counter[str] = field(default_factory=Counter)
    leases: dict[str, _Lease] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._world, self._rng = self.seeded.world, Random(f"guests {self.seeded.seed}")
        handle = self._world.scheduler.handle

        def handling(event: events.Event) -> list[Command]:
            return [each for each in handle(event) if not self._is_mine(each)]

        self._world.scheduler.handle = handling  # type: ignore[method-assign]
        self._later(self.every_s, self._comes)

    def check_end(self) -> None:
        """Let memory be seen back after the last lease. Raises ContractViolation if one stays."""
        world = self._world
        until = world.queue.now + 2 * world.scheduler.state.settings.reclaim_bound_s
        while world.scheduler.state.guests and world.queue.now < until:
            world.queue.step()
        if world.scheduler.state.guests:
            raise ContractViolation(f"seed {self.seeded.seed}: {world.scheduler.state.guests} do not end")

    def _later(self, mean_s: float, do) -> None:  # type: ignore[no-untyped-def]
        self._world.queue.after(self._rng.expovariate(1 / mean_s), do)

    def _comes(self) -> None:
        world, now = self._world, self._world.queue.now
        if now >= self.seeded.last_at_s:
            return
        self._later(self.every_s, self._comes)
        largest = max(card.total_bytes or 0 for card in world.machine.cards)
        ticket = TicketId(len(world.clients) + 1)
        lease = _Lease(ticket, f"lease~{ticket}")
        self.leases[lease.name] = lease
        deadline = now + 120.0
        world.clients[ticket] = Client(Request(now, lease.name, 1, 1), deadline)
        world.open_requests += 1
        size = round(self._rng.uniform(0.05, 0.6) * largest)
        spec = ModelSpec(lease.name, fit_whole(size), guest=True, load_s=1.0)
        lasts_s = self._rng.choice([None, 10.0])
        world.send(events.GuestAsked(now, ticket, lease.name, deadline, spec=spec, lasts_s=lasts_s))
        if self._rng.random() < 0.1:
            self._later(5.0, lambda: world.leaves(ticket))

    def _is_mine(self, command: Command) -> bool:
        match command:
            case StartEngine(residency, name) if name in self.leases:
                lease = self.leases[name]
                lease.residency = residency
                (share,) = command.placement.used_shares
                lease.device, lease.bytes = share.device.id, share.parts.total
                ready = events.EngineReady(self._world.queue.now, residency)
                self._world.queue.after(0.0, lambda: lease.ended or self._world.send(ready))
            case StopEngine(residency) if found := self._with(residency):
                self._world.queue.after(0.0, lambda: self._stopped(found))
            case Grant(ticket, _, residency) if found := self._with(residency):
                self._world.clients[ticket].granted_at = self._world.queue.now
                self.outcomes["granted"] += 1
                self._later(2.0, lambda: self._grows(found, 0.5))
                self._later(15.0, lambda: self._command_ends(found))
            case _:
                return False
        return True

    def _with(self, residency: ResidencyId) -> _Lease | None:
        return next((each for each in self.leases.values() if each.residency == residency), None)

    def _grows(self, lease: _Lease, to: float) -> None:
        """Take a part of the memory, or all of it; an honest guest must get what it leases."""
        machine, residency = self._world.machine, lease.residency
        if lease.ended or residency is None or lease.device is None:
            return
        wanted = {lease.device: round(to * lease.bytes)}
        before = dict(machine._held.get(residency, {}))
        machine.give_back(residency)
        if not machine.take(residency, wanted):
            machine.take(residency, before)
            self.outcomes["out of memory"] += 1
        if to < 1:
            self._later(2.0, lambda: self._grows(lease, 1.0 if self.honest else 1.3))

    def _command_ends(self, lease: _Lease) -> None:
        """End the command, if it was granted: its memory is free before the daemon hears of it."""
        if lease.ended or lease.residency is None:
            return
        self._world.machine.give_back(lease.residency)
        self.outcomes["command ended"] += 1
        self._world.send(events.GuestEnded(self._world.queue.now, lease.name, "its command has ended"))

    def _stopped(self, lease: _Lease) -> None:
        """Take note that the lease is over; a command that runs on keeps its memory for a while."""
        world, residency = self._world, lease.residency
        if lease.ended or residency is None:
            raise ContractViolation(f"{lease.name} is stopped twice")
        lease.ended = True
        world.machine.end(residency)
        held_on = world.machine.driver is not Driver.NOTHING and self._rng.random() < 0.5
        world.queue.after(
            self._rng.uniform(0, 5) if held_on else 0.0, lambda: world.machine.give_back(residency)
        )
        client = world.clients[lease.ticket]
        if client.outcome is None:
            world._end(client, Outcome.SERVED)
        world.send(events.EngineExited(world.queue.now, residency, "the lease has ended"))
