"""A scheduler with engines that do as they are told, on cards of which only the memory matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.exit_causes import Cause
from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal, Share
from cotenant.domain.residencies import LeaseId, RefusalCode, ResidencyId, ResidencyState, TicketId
from cotenant.planning.compute_modes import Admission
from cotenant.planning.device_needs import Fit
from cotenant.planning.ledger import DeviceReading
from cotenant.planning.single_device import place_without_memory
from cotenant.scheduling import events, invariants
from cotenant.scheduling.commands import (
    AdoptEngine,
    Command,
    DiscardEngine,
    ForgetEngine,
    Grant,
    PublishDecision,
    Refuse,
    StartEngine,
    StopEngine,
    WakeAt,
)
from cotenant.scheduling.model_spec import ModelSpec, SchedulerSettings
from cotenant.scheduling.scheduler import Scheduler

GB = 10**9


def card(index: int, gb: float = 24) -> Device:
    return Device(DeviceId(f"GPU-{index}"), DeviceKind.GPU, "card", index=index, total_bytes=round(gb * GB))


def fit_whole(size: int) -> Fit:
    """A model of one piece."""

    def fit(budgets: Sequence[Budget]) -> Placement | Refusal:
        for budget in budgets:
            if budget.left_out is None and budget.budget_bytes >= size:
                share = Share(budget, 0, 0, 1, has_output=True, parts=Parts(weights=size))
                return Placement("model", Recipe(), 1, 1, (share,), host=Parts())
        return Refusal("model", f"it needs {size} bytes on one device")

    return fit


def fit_over(sizes: Sequence[int]) -> Fit:
    """A model of pieces that go on as many devices."""

    def fit(budgets: Sequence[Budget]) -> Placement | Refusal:
        usable = [budget for budget in budgets if budget.left_out is None]
        fitting = [b for b, size in zip(usable, sizes, strict=False) if b.budget_bytes >= size]
        if len(fitting) < len(sizes):
            return Refusal("model", "it needs several devices")
        shares = tuple(
            Share(b, i, i, 1, has_output=False, parts=Parts(weights=size))
            for i, (b, size) in enumerate(zip(fitting, sizes, strict=True))
        )
        return Placement("model", Recipe(), len(sizes), len(sizes), shares, host=Parts())

    return fit


def fit_nowhere(budgets: Sequence[Budget]) -> Placement:
    """A model that is served elsewhere."""
    return place_without_memory("model", Recipe())


def model(name: str, gb: float, **facts: object) -> ModelSpec:
    return replace(ModelSpec(name, fit_whole(round(gb * GB)), load_s=2.0), **facts)  # type: ignore[arg-type]


@dataclass
class Bench:
    """Drives a scheduler by hand; every step checks the laws."""

    scheduler: Scheduler
    now: float = 0.0
    granted: dict[TicketId, LeaseId] = field(default_factory=dict)
    refused: dict[TicketId, Refuse] = field(default_factory=dict)
    loading: dict[str, ResidencyId] = field(default_factory=dict)
    stopping: dict[str, ResidencyId] = field(default_factory=dict)
    story: list[Decision] = field(default_factory=list)
    adopted: dict[str, ResidencyId] = field(default_factory=dict)
    discarded: dict[str, str] = field(default_factory=dict)
    forgotten: list[ResidencyId] = field(default_factory=list)
    wake_at: float | None = None
    tickets: int = 0

    @classmethod
    def of(cls, models: Sequence[ModelSpec], cards: Sequence[Device], **settings: object) -> Bench:
        bench = cls(Scheduler(SchedulerSettings(**settings)))  # type: ignore[arg-type]
        bench.read(*cards)
        bench.send(events.ModelsChanged(0.0, tuple(models)))
        return bench

    @property
    def state(self):
        return self.scheduler.state

    def read(
        self,
        *cards: Device,
        foreign: dict[int, float] | None = None,
        live: bool = False,
        admits: dict[int, int | None] | None = None,
        **facts,
    ) -> None:
        others = {index: round(gb * GB) for index, gb in (foreign or {}).items()}
        readings = tuple(
            DeviceReading(
                device,
                self.now,
                device.total_bytes or 0,
                (device.total_bytes or 0) - others.get(device.index or 0, 0),
                live=live,
                foreign_bytes=others.get(device.index or 0, 0),
                admission=Admission((admits or {}).get(device.index or 0), "it admits no more engines"),
                **facts,
            )
            for device in cards
        )
        self.send(events.DevicesRead(self.now, readings))

    def send(self, event: events.Event) -> list[Command]:
        return self.take(self.scheduler.handle(event))

    def take(self, commands: list[Command]) -> list[Command]:
        for command in commands:
            match command:
                case Grant(ticket, lease, _):
                    assert ticket not in self.granted
                    assert ticket not in self.refused
                    self.granted[ticket] = lease
                case Refuse(ticket):
                    assert ticket not in self.granted
                    assert ticket not in self.refused
                    self.refused[ticket] = command
                case StartEngine(residency):
                    self.loading[self.state.residencies[residency].model] = residency
                case StopEngine(residency):
                    name = self.state.residencies[residency].model
                    if self.loading.get(name) == residency:
                        del self.loading[name]
                    # One that moves may have several engines that end.
                    self.stopping[name if name not in self.stopping else f"{name} #{residency}"] = residency
                case AdoptEngine(residency, name, _, engine):
                    self.adopted[engine] = residency
                    if self.state.residencies[residency].state is ResidencyState.LOADING:
                        self.loading[name] = residency
                case DiscardEngine(engine, why):
                    self.discarded[engine] = why
                case ForgetEngine(residency):
                    self.forgotten.append(residency)
                    for ends in (self.loading, self.stopping):
                        for name in [name for name, each in ends.items() if each == residency]:
                            del ends[name]
                case WakeAt(at):
                    self.wake_at = at
                case PublishDecision(decision):
                    self.story.append(decision)
        invariants.check(self.state)
        invariants.check_kept(self.state)
        return commands

    def ask(self, name: str, *, wait_s: float = 600, priority: int = 0) -> TicketId:
        self.tickets += 1
        ticket = TicketId(self.tickets)
        self.send(events.RequestArrived(self.now, ticket, name, self.now + wait_s, priority))
        return ticket

    def ready(self, name: str) -> None:
        self.send(events.EngineReady(self.now, self.loading.pop(name)))

    def move(self, name: str, *indices: int) -> None:
        devices = frozenset(DeviceId(f"GPU-{index}") for index in indices)
        self.send(events.MoveAsked(self.now, name, devices))

    def drain(self, *indices: int) -> None:
        devices = frozenset(DeviceId(f"GPU-{index}") for index in indices)
        self.send(events.DrainsChanged(self.now, devices))

    def where(self, name: str) -> list[str]:
        """The devices of the residency that serves a model."""
        residency = self.state.residency_of(self.state.models[name])
        return [] if residency is None else sorted(residency.devices)

    def gone(self, name: str) -> None:
        self.send(events.EngineExited(self.now, self.stopping.pop(name), f"{name} was stopped"))

    def die(self, name: str, why: str = "killed by signal 9", cause: Cause = Cause.KILLED) -> None:
        residency = self.loading.pop(name, None) or self.state.models[name].residency
        self.send(events.EngineExited(self.now, residency, why, cause))

    def done(self, ticket: TicketId) -> None:
        self.take(self.scheduler.release(self.granted.pop(ticket), self.now))
        invariants.check(self.state)
        invariants.check_kept(self.state)

    def wait(self, seconds: float) -> None:
        """Let time pass, firing the timers on the way."""
        until = self.now + seconds
        while self.wake_at is not None and self.wake_at <= until:
            self.now, self.wake_at = self.wake_at, None
            self.send(events.TimerFired(self.now))
        self.now = until

    def load(self, name: str, *, requests: int = 1) -> list[TicketId]:
        """Have a model loaded and serve some requests of it."""
        tickets = [self.ask(name) for _ in range(requests)]
        if name in self.loading:
            self.ready(name)
        return tickets

    def touch(self, name: str) -> None:
        """One request, answered at once."""
        for ticket in self.load(name):
            self.done(ticket)

    def told(self, kind: DecisionKind, name: str | None = None) -> list[str]:
        return [d.text for d in self.story if d.kind is kind and (name is None or d.model == name)]


__all__ = ["GB", "Bench", "RefusalCode", "card", "fit_nowhere", "fit_over", "fit_whole", "model"]
