"""What it costs to show a fleet as it grows, and to read it: all of it runs in the daemon's event loop.

`python -m bench.fleet_status [--cards 8,64,512,4096] [--models 10000]` prints CPU milliseconds per call, and
how they grow: the exponent of the cost over the number of cards, of the last step. A card bears two models.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.models.shapes import dense

from bench.rows import Row, print_table
from bench.workloads import fit_pieces
from cotenant.clock import SystemClock
from cotenant.config.configuration import ModelEntry
from cotenant.daemon.alerting.rules import AlertRules, CardMemory
from cotenant.daemon.core.effects import Effects, Running
from cotenant.daemon.core.fleet_view import FleetView
from cotenant.daemon.core.lessor import FleetLessor
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.operator import FleetOperator
from cotenant.daemon.core.router import FleetRouter
from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint, EngineBuild, EngineEnd, EngineForm
from cotenant.domain.fragmentation import Fragmentation
from cotenant.domain.models import Recipe
from cotenant.domain.placements import Budget, Placement
from cotenant.gateway.telemetry.counters import RequestCounters
from cotenant.gateway.telemetry.history import History
from cotenant.gateway.telemetry.metrics import Metrics
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling import events, invariants
from cotenant.scheduling.model_spec import ModelSpec, SchedulerSettings
from cotenant.scheduling.queries.fragmentation import free_memory
from cotenant.scheduling.scheduler import Scheduler
from cotenant.scheduling.state import Outbox
from cotenant.scheduling.transitions import became_ready, start

_GB: Final = 10**9
_CARD: Final = 24 * _GB
_MODEL: Final = 9 * _GB
_PER_NODE: Final = 8
_REPEATS: Final = 5
_TARGET: Final = 1.2
_JUDGED_MS: Final = 5.0
"""What costs less with the most cards is not judged: the processor's caches change it more than its loops."""
_SHAPE: Final = dense(8, _MODEL // 16)


@dataclass
class _Engine:
    """An engine that is there and does nothing."""

    pid: int
    endpoint: Endpoint = field(default_factory=lambda: Endpoint("127.0.0.1", 9))
    build: EngineBuild = field(
        default_factory=lambda: EngineBuild(EngineKind.LLAMA_CPP, EngineForm.SERVER, "engine", "1")
    )
    problem: str | None = None
    log_path: Path | None = None


class _Alerts:
    def active(self) -> Sequence[Alert]:
        return ()

    def recent(self) -> Sequence[Alert]:
        return ()

    def totals(self) -> dict[AlertKind, int]:
        return {}


class Fleet:
    """A loop over `cards` of 24 GB on nodes of eight, with two ready models each, of `models` in all."""

    def __init__(self, cards: int, models: int) -> None:
        self.clock = SystemClock()
        self.scheduler = Scheduler(SchedulerSettings())
        self.devices = [
            Device(
                DeviceId(f"GPU-{n}"),
                DeviceKind.GPU,
                "card",
                index=n % _PER_NODE,
                total_bytes=_CARD,
                node=f"n{n // _PER_NODE}",
            )
            for n in range(cards)
        ]
        effects = Effects(
            None,  # type: ignore[arg-type]
            self.clock,
            cpu_fallback=lambda entry, placement: placement,
            load_timeout_s=60,
            log_path=lambda name: Path(f"{name}.log"),
        )
        self.loop = Loop(self.scheduler, self.clock, effects)
        for node in range(math.ceil(cards / _PER_NODE)):
            self.read_node(node)
        names = [f"m{n}" for n in range(max(models, 2 * cards))]
        specs = [ModelSpec(name, fit_pieces(name, (_MODEL,)), slots=4, load_s=5.0) for name in names]
        entries = [
            ModelEntry(name, Path(f"{name}.gguf"), Recipe(n_ctx=4096, parallel=4), _SHAPE, (), ())
            for name in names
        ]
        self.loop.serve(entries, events.ModelsChanged(self.clock.now(), tuple(specs)))
        self._load(specs)

        async def reload() -> list[str]:
            return []

        self.router = FleetRouter(self.loop)
        self.operator = FleetOperator(self.loop, reload)
        self.view = FleetView(self.loop)
        self.counters = RequestCounters(self.router)
        self.metrics = Metrics(self.counters, self.operator, _Alerts(), FleetLessor(self.loop))  # type: ignore[arg-type]
        self.history = History(self.counters, self.operator)
        self.rules = AlertRules()

    def read_node(self, node: int) -> None:
        """Read the cards of a node: nothing is new, except for the first time."""
        now, state = self.clock.now(), self.scheduler.state
        readings = tuple(
            DeviceReading(
                device,
                now,
                _CARD,
                _CARD - sum(state.residencies[r].bytes for r in state.ledger.holders(device.id)),
                foreign_bytes=0,
                engine_bytes=dict.fromkeys(state.ledger.holders(device.id), _MODEL),
            )
            for device in self.devices[node * _PER_NODE : (node + 1) * _PER_NODE]
        )
        self.loop.post(events.DevicesRead(now, readings, f"n{node}"))

    def _load(self, specs: Sequence[ModelSpec]) -> None:
        """Have two models loaded on each card, without a decision for each."""
        state = self.scheduler.state
        out = Outbox(state, self.clock.now(), "bench")
        for place, device in enumerate(self.devices):
            for spec in specs[2 * place : 2 * place + 2]:
                placement = spec.fit([Budget(device, _CARD, _CARD)])
                assert isinstance(placement, Placement)
                residency = start(state, state.models[spec.name], placement, out, "")
                became_ready(state, residency, out)
                end: asyncio.Future[EngineEnd] = asyncio.get_running_loop().create_future()
                running = Running(spec.name, placement, end, self.loop.post, lambda: 0)
                running.engine = _Engine(residency.id + 1_000_000)
                self.loop.effects.running[residency.id] = running

    def calls(self) -> dict[str, Callable[[], object]]:
        """Name what is measured."""
        seen = {
            str(device.id): CardMemory(f"GPU {n}", _MODEL, _CARD) for n, device in enumerate(self.devices)
        }
        return {
            "device statuses": self.operator.devices,
            "model statuses": self.operator.statuses,
            "served models": self.router.models,
            "/metrics, in the event loop": lambda: self.metrics.collect(Fragmentation()),
            "/metrics, in its thread": self._collect,
            "free memory, to be measured": lambda: free_memory(self.scheduler.state, self.clock.now()),
            "history, a point": lambda: self.history.sample(5.0),
            "alerts of cards": lambda: self.rules.cards(self.clock.now(), seen),
            "pids of engines": self.loop.effects.pids,
            "laws": lambda: invariants.check(self.scheduler.state),
            "models awaiting room": self.view.models_without_room,
            "warm ranking": lambda: self.view.warm_ranking(_GB, {}),
            "readings of one node, nothing new": lambda: self.read_node(0),
            "readings of all nodes, nothing new": self._read_all,
        }

    def _collect(self) -> object:
        return list(self.metrics.collect(Fragmentation()))

    def _read_all(self) -> None:
        for node in range(math.ceil(len(self.devices) / _PER_NODE)):
            self.read_node(node)


def _cpu_ms(call: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(_REPEATS):
        began = time.process_time()
        call()
        best = min(best, time.process_time() - began)
    return best * 1000


async def measure(cards: Sequence[int], models: int) -> list[Row]:
    """Print the cost of each call by the number of cards, and return how it grew with the last step."""
    table: dict[str, list[float]] = {}
    for count in cards:
        fleet = Fleet(count, models)
        for name, call in fleet.calls().items():
            table.setdefault(name, []).append(_cpu_ms(call))
    print(f"{'CPU ms, by cards':<36}" + "".join(f"{count:>10,}" for count in cards))
    for name, costs in table.items():
        print(f"{name:<36}" + "".join(f"{cost:>10.3g}" for cost in costs))
    step = math.log(cards[-1] / cards[-2])
    growth = {n: math.log(c[-1] / c[-2]) / step for n, c in table.items() if c[-1] >= _JUDGED_MS}
    return [
        Row(f"growth of {name}", found, "", target=f"<= {_TARGET}", met=found <= _TARGET)
        for name, found in growth.items()
    ]


def main(argv: Sequence[str] = ()) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", default="8,64,512,4096")
    parser.add_argument("--models", type=int, default=10_000)
    asked = parser.parse_args(argv)
    return asyncio.run(measure([int(count) for count in asked.cards.split(",")], asked.models))


if __name__ == "__main__":
    print_table(main(sys.argv[1:]))
