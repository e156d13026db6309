"""What a decision costs as the fleet grows: many cards, many models, many that wait.

`python -m bench.fleet` prints CPU milliseconds per event of the scheduler for 8 to 4,096 cards, how they
grow, and events of a fleet of 10,000 cards and 30,000 models. `--cards 8,64` measures these sizes alone.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from bench.rows import Row, print_table
from bench.workloads import fit_pieces
from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.residencies import TicketId
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling import events
from cotenant.scheduling.commands import Command, Grant, StartEngine, StopEngine
from cotenant.scheduling.model_spec import ModelSpec, SchedulerSettings
from cotenant.scheduling.scheduler import Scheduler

_GB: Final = 10**9
_NODE: Final = 8
_REPEATS: Final = 9
_SIZES: Final = (8, 64, 512, 4096)
_MODELS: Final = 10_000
_GROWTH_MOST: Final = 1.2
_MOST_MS: Final = {
    (8, "all busy, 100 models wait"): 2.0,
    (8, "an engine falls idle, 100 models wait"): 2.0,
    (512, "cold request that evicts"): 10.0,
    (512, "all busy, 10 models wait"): 20.0,
}
_LARGE_CARDS, _LARGE_MODELS, _LARGE_EVENTS = 10_000, 30_000, 2_000
_GIB: Final = 1 << 30


class Fleet:
    """A scheduler with `cards` of 24 GB, eight to a machine, two ready models on each, and cold ones.

    A ready model takes `each_gb` of its card, a cold one 4 GB.
    """

    def __init__(self, cards: int, models: int, *, each_gb: float) -> None:
        self.now = 0.0
        self._tickets = 0
        self.scheduler = Scheduler(SchedulerSettings(max_queue_total=1 << 30))
        for first in range(0, cards, _NODE):
            self.send(self.reading(first // _NODE, min(_NODE, cards - first)))
        self.loaded = [f"hot{n}" for n in range(2 * cards)]
        self.cold = [f"cold{n}" for n in range(max(200, models - 2 * cards))]
        self.never = [f"never{n}" for n in range(_REPEATS)]
        hot = [_spec(name, each_gb) for name in self.loaded]
        others = [_spec(name, 4) for name in self.cold] + [_spec(name, 20, 25) for name in self.never]
        self.send(events.ModelsChanged(self.tick(), (*hot, *others)))
        for name in self.loaded:
            self.answer(self.send(events.LoadAsked(self.tick(), name)))

    def reading(self, node: int, cards: int = _NODE, used_bytes: int = 0) -> events.DevicesRead:
        """Read the cards of a machine, of which other programs use so much on each."""
        devices = (
            Device(
                DeviceId(f"GPU-{node}-{n}"),
                DeviceKind.GPU,
                "card",
                index=n,
                total_bytes=24 * _GB,
                node=f"n{node}",
            )
            for n in range(cards)
        )
        at = self.tick()
        readings = (
            DeviceReading(device, at, 24 * _GB, 24 * _GB - used_bytes, live=False) for device in devices
        )
        return events.DevicesRead(at, tuple(readings), f"n{node}")

    def send(self, event: events.Event) -> list[Command]:
        """Handle an event."""
        return self.scheduler.handle(event)

    def request(self, name: str) -> events.RequestArrived:
        """Return the arrival of a request."""
        self._tickets += 1
        return events.RequestArrived(self.tick(), TicketId(self._tickets), name, math.inf)

    def tick(self) -> float:
        """Let a moment pass."""
        self.now += 0.001
        return self.now

    def answer(self, commands: Sequence[Command]) -> None:
        """Have engines that are started be ready, and those that are stopped end, at once."""
        for command in commands:
            if isinstance(command, StartEngine):
                self.answer(self.send(events.EngineReady(self.tick(), command.residency)))
            elif isinstance(command, StopEngine):
                self.answer(self.send(events.EngineExited(self.tick(), command.residency, "stopped")))

    def occupy(self) -> None:
        """Have every loaded model serve as much as it can."""
        for name in self.loaded:
            assert self.scheduler.try_grant(name, self.tick()) is not None


def main(argv: Sequence[str] = ()) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", default=",".join(map(str, _SIZES)))
    sizes = [int(size) for size in parser.parse_args(argv).cards.split(",")]
    by_size = {size: _costs(size) for size in sizes}
    rows = []
    for name in by_size[sizes[0]]:
        rows += [_row(name, size, by_size[size][name]) for size in sizes]
        smallest, largest = max(64, sizes[0]), sizes[-1]
        if smallest in by_size and largest > smallest:
            ratio = by_size[largest][name] / by_size[smallest][name]
            growth = math.log(ratio) / math.log(largest / smallest)
            target = f"<= {_GROWTH_MOST}"
            rows.append(Row(f"{name}, growth", growth, "exponent", target=target, met=growth <= _GROWTH_MOST))
    return rows + (_large() if not argv else [])


def _costs(cards: int) -> dict[str, float]:
    """Return CPU milliseconds of an event of each kind, the median."""
    roomy, full, busy, crowded = (Fleet(cards, _MODELS, each_gb=size) for size in (8, 11, 11, 11))
    found = {
        "cold request with room": _median(roomy.send, [roomy.request(n) for n in roomy.cold[:_REPEATS]]),
        "cold request that evicts": _median(full.send, [full.request(n) for n in full.cold[:_REPEATS]]),
        "reading of one machine": _median(
            roomy.send, [roomy.reading(0, min(_NODE, cards), _GB * (n % 2)) for n in range(_REPEATS)]
        ),
        "two cards, never fits": _median(roomy.send, [roomy.request(name) for name in roomy.never]),
    }
    for fleet, waiting in ((busy, 10), (crowded, 100)):
        fleet.occupy()
        for name in fleet.cold[:waiting]:
            assert not any(isinstance(each, StartEngine) for each in fleet.send(fleet.request(name)))
        more = [fleet.request(fleet.loaded[n % len(fleet.loaded)]) for n in range(_REPEATS)]
        more += [fleet.request(fleet.cold[n]) for n in range(_REPEATS)]
        found[f"all busy, {waiting} models wait"] = _median(fleet.send, more)
    leases = [*crowded.scheduler.state.leases][:_REPEATS]
    ends = [events.LeaseReleased(crowded.tick(), lease) for lease in leases]
    found["an engine falls idle, 100 models wait"] = _median(crowded.send, ends)
    return found


def _large() -> list[Row]:
    """Measure a stream of requests to cold and loaded models, whose answers end, in a very large fleet."""
    fleet = Fleet(_LARGE_CARDS, _LARGE_MODELS, each_gb=11)
    took: list[float] = []
    evicting: list[float] = []
    for n in range(_LARGE_EVENTS):
        cold = n % 20 == 0
        name = fleet.cold[n // 20] if cold else fleet.loaded[(n * 7919) % len(fleet.loaded)]
        pending: list[events.Event] = [fleet.request(name)]
        while pending:
            event = pending.pop()
            started = time.process_time()
            commands = fleet.send(event)
            ms = (time.process_time() - started) * 1e3
            stops = [each.residency for each in commands if isinstance(each, StopEngine)]
            (evicting if stops else took).append(ms)
            starts = [each.residency for each in commands if isinstance(each, StartEngine)]
            leases = [each.lease for each in commands if isinstance(each, Grant)]
            pending += [events.EngineExited(fleet.tick(), each, "stopped") for each in stops]
            pending += [events.EngineReady(fleet.tick(), each) for each in starts]
            pending += [events.LeaseReleased(fleet.tick(), each) for each in leases]
    p99 = statistics.quantiles(took, n=100)[98]
    evict = max(evicting)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB
    name = f"{_LARGE_CARDS:,} cards, {_LARGE_MODELS:,} models"
    return [
        Row(f"{name}: p99", p99, "ms", target="<= 5 ms", met=p99 <= 5),
        Row(f"{name}: worst of {len(evicting)} evictions", evict, "ms", target="<= 20 ms", met=evict <= 20),
        Row(f"{name}: memory", used, "GiB", target="<= 2 GiB", met=used <= 2),
    ]


def _spec(name: str, *pieces_gb: float) -> ModelSpec:
    """Describe a model by the bytes that it needs of each of its cards."""
    pieces = [round(size * _GB) for size in pieces_gb]
    return ModelSpec(name, fit_pieces(name, pieces), keep_alive_s=None, load_s=0.001)


def _median(send: Callable[[events.Event], object], of: Sequence[events.Event]) -> float:
    times = []
    for event in of:
        started = time.process_time()
        send(event)
        times.append((time.process_time() - started) * 1e3)
    return statistics.median(times)


def _row(name: str, cards: int, ms: float) -> Row:
    most = _MOST_MS.get((cards, name))
    target = None if most is None else f"<= {most:g} ms"
    return Row(f"{name}, {cards} cards", ms, "ms", target=target, met=None if most is None else ms <= most)


if __name__ == "__main__":
    print_table(main(sys.argv[1:]))
