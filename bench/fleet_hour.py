"""An hour of a large fleet in virtual time: what it costs, by event.

`python -m bench.fleet_hour [--cards 10000] [--models 30000] [--hours 1]` prints the wall time, the CPU time
of events by type, and the largest memory of the process. Cards have 24 GB and are on nodes of eight; models
take 4 to 20 GB; two of three requests go to a tenth of the models.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import defaultdict
from dataclasses import replace
from random import Random
from typing import Final

from bench.rows import Row, print_table
from bench.workloads import spec_of
from cotenant.scheduling.commands import Command
from cotenant.scheduling.events import Event
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.machine import Driver, Machine, card
from cotenant.simulation.models import Request, SimulatedModel, quantile
from cotenant.simulation.results import summarize
from cotenant.simulation.world import World

_GB: Final = 10**9
_NODE: Final = 8
_READ_EVERY_S: Final = 10.0
_PATIENCE_S: Final = 600.0
_HOT: Final = 0.1
_HOT_SHARE: Final = 2 / 3
_EVENT_MS, _EVICT_MS, _RSS_GIB = 5.0, 20.0, 2.0


class TimedScheduler(Scheduler):
    """Keeps the CPU milliseconds of each event by type; those that evicted count as such."""

    def __init__(self, settings: SchedulerSettings) -> None:
        super().__init__(settings)
        self.took_ms: dict[str, list[float]] = defaultdict(list)

    def handle(self, event: Event) -> list[Command]:
        evicting = len(self.state.reservations)
        began = time.process_time()
        commands = super().handle(event)
        took_ms = (time.process_time() - began) * 1000
        evicts = len(self.state.reservations) > evicting
        self.took_ms["that evicts" if evicts else type(event).__name__].append(took_ms)
        return commands


def fleet(cards: int, models: int, rng: Random, scheduler: Scheduler) -> World:
    """Return a world of cards on nodes, and models of several sizes."""
    devices = [replace(card(n, 24 * _GB), index=n % _NODE, node=f"n{n // _NODE}") for n in range(cards)]
    served = []
    for n in range(models):
        size = round(rng.uniform(4, 20) * _GB)
        served.append(SimulatedModel(f"m{n}", (size,), load_s=2 + size / 2e9))
    return World(
        scheduler,
        Machine(devices, Driver.PROCESSES),
        served,
        rng,
        read_every_s=_READ_EVERY_S,
        watched=False,
    )


def traffic(models: int, per_s: float, seconds: float, rng: Random) -> list[Request]:
    """Draw requests of 1 to 20 s, most of them for few models."""
    requests = []
    at, hot = 0.0, max(1, round(models * _HOT))
    while (at := at + rng.expovariate(per_s)) < seconds:
        model = rng.randrange(hot) if rng.random() < _HOT_SHARE else rng.randrange(models)
        requests.append(Request(at, f"m{model}", 100, 100, service_s=rng.uniform(1, 20)))
    return requests


def run(cards: int, models: int, hours: float, per_s: float) -> list[Row]:
    """Run and report."""
    rng = Random(1)
    scheduler = TimedScheduler(SchedulerSettings())
    began = time.perf_counter()
    world = fleet(cards, models, rng, scheduler)
    specs = [spec_of(model, keep_alive_s=300.0) for model in world.models.values()]
    world.begin(specs)
    started_s = time.perf_counter() - began
    scheduler.took_ms.clear()
    world.expect(traffic(models, per_s, hours * 3600, rng), _PATIENCE_S)
    began, cpu = time.perf_counter(), time.process_time()
    for minute in range(1, round(hours * 60) + 1):
        world.run(until=minute * 60)
        events, cpu_s = sum(map(len, scheduler.took_ms.values())), time.process_time() - cpu
        print(f"minute {minute}: {events:,} events, {cpu_s:.0f} s of CPU", file=sys.stderr, flush=True)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    result = summarize(world)
    total = result.total
    print(
        f"{cards:,} cards, {models:,} models: {total.requests:,} requests, {total.answered:,} answered, "
        f"{total.loads:,} loads, {total.evictions:,} evictions; mean wait {total.waits.mean_s:.2f} s"
    )
    print(f"{'CPU ms':<20}{'events':>10}{'p50':>10}{'p99':>10}{'most':>10}")
    for name, took in sorted(scheduler.took_ms.items(), key=lambda item: -sum(item[1])):
        took.sort()
        shown = (quantile(took, 0.5), quantile(took, 0.99), took[-1])
        print(f"{name:<20}{len(took):>10,}" + "".join(f"{value:>10.3g}" for value in shown))
    evicting = scheduler.took_ms.pop("that evicts", [])
    others = sorted(value for took in scheduler.took_ms.values() for value in took)
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    p99, evict_p99 = quantile(others, 0.99), quantile(evicting, 0.99)
    return [
        Row("fleet: its start", started_s, "s"),
        Row("fleet: wall time of the run", wall_s, "s"),
        Row("fleet: CPU time of the run", cpu_s, "s"),
        Row("fleet: p99 of events", p99, "ms", target=f"<= {_EVENT_MS:g} ms", met=p99 <= _EVENT_MS),
        Row(
            "fleet: p99 of evictions",
            evict_p99,
            "ms",
            target=f"<= {_EVICT_MS:g} ms",
            met=evict_p99 <= _EVICT_MS,
        ),
        Row("fleet: memory", gib, "GiB", target=f"<= {_RSS_GIB:g} GiB", met=gib <= _RSS_GIB),
    ]


def main() -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=30_000)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--per-s", type=float, help="requests per second; one for 100 models unless given")
    asked = parser.parse_args()
    return run(asked.cards, asked.models, asked.hours, asked.per_s or asked.models / 100)


if __name__ == "__main__":
    print_table(main())
