"""How long an idle model keeps its room while another one waits: rules replayed over the same requests.

`python -m bench.residence` is quick, and noise; `--full` takes many draws of sizes, in as many processes as
`--jobs` says. `--traces FOLDER` adds the recorded requests found there.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

from bench.policies import GB, Interval, interval, scenes
from bench.replay import UNBOUNDED, Report, report
from bench.rows import Row, print_table
from bench.workloads import draw_models, spec_of
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.residence import evictable_from
from cotenant.scheduling.residency import Residency
from cotenant.scheduling.scheduler import Scheduler
from cotenant.scheduling.state import State
from cotenant.simulation.closed_loop import Clients
from cotenant.simulation.machine import Machine, card
from cotenant.simulation.models import Request, SimulatedModel
from cotenant.simulation.world import World

Rule = Callable[[State, Residency, ModelState], float]
BASE, OLD, NEW = "no rule", "for its load time", "by expected cost"
MEASURES: dict[str, Callable[[Report], float]] = {
    "mean": lambda r: r.mean_s,
    "p99": lambda r: r.p99_s,
    "worst model": lambda r: r.worst_model_s,
    "loads per request": lambda r: r.loads / max(1, r.served),
    "requests served": lambda r: r.served,
}
_AS_GOOD, _LOADS = 1.0, 1.05
_QUICK_DRAWS, _FULL_CLOSED_DRAWS, _SPAN_S = 2, 20, 3600.0


def at_once(state: State, residency: Residency, waiting: ModelState) -> float:
    return residency.held_since


def for_its_load_time(state: State, residency: Residency, waiting: ModelState) -> float:
    return residency.held_since + max(1.0, state.models[residency.model].load_s)


RULES: dict[str, Rule] = {BASE: at_once, OLD: for_its_load_time, NEW: evictable_from}


def no_requests(draw: int) -> Sequence[Request]:
    return ()


@dataclass(frozen=True)
class Study:
    """Requests of a log, or closed-loop clients, for models of drawn sizes on equal cards.

    With `each` every model has such clients of its own.
    """

    name: str
    card_bytes: int
    cards: int
    requests: Callable[[int], Sequence[Request]] = no_requests
    clients: Clients | None = None
    models: int = 0
    size: int | None = None
    each: bool = False
    full_draws: int = _FULL_CLOSED_DRAWS

    def run(self, rule: str, draw: int) -> Report:
        requests = self.requests(draw)
        names = sorted({r.model for r in requests}) or [f"m{number}" for number in range(self.models)]
        largest = round(self.card_bytes * 0.9)
        models = draw_models(names, Random(f"sizes {draw}"), largest_bytes=largest)
        if self.size is not None:
            models = tuple(replace(model, pieces=(self.size,)) for model in models)
        return self._replay(rule, draw, requests, models)

    def _replay(
        self, rule: str, draw: int, requests: Sequence[Request], models: Sequence[SimulatedModel]
    ) -> Report:
        _use(RULES[rule])
        machine = Machine([card(index, self.card_bytes) for index in range(self.cards)])
        world = World(Scheduler(UNBOUNDED), machine, models, Random(draw), watched=False)
        world.begin([spec_of(model) for model in models])
        if self.clients is not None:
            names = [model.name for model in sorted(models, key=lambda model: -model.bytes)]
            for asked in [[name] for name in names] if self.each else [names]:
                for turns in self.clients.draw(asked, draw):
                    world.visit(turns, self.clients.until)
        world.expect(requests)
        world.run()
        return report(world)


def _use(rule: Rule) -> None:
    """Have every module of the scheduler ask this rule."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("cotenant.scheduling.") and hasattr(module, evictable_from.__name__):
            setattr(module, evictable_from.__name__, rule)


def studies(*, full: bool, traces: Path | None) -> Iterator[Study]:
    for scene in scenes(full=full, traces=traces):
        yield Study(scene.name, scene.card_bytes, 2, scene.requests, full_draws=scene.full_draws)
    span_s = _SPAN_S if full else _SPAN_S / 4

    def closed(
        name: str, think_s: float, models: int, cards: int, size: int | None = None, **n: int
    ) -> Study:
        return Study(name, 24 * GB, cards, no_requests, Clients(n, think_s, span_s), models, size)

    one_fits = 18 * GB
    yield closed("1 person alternates, 1 of 2 models fits", 5.0, 2, 1, one_fits, alternating=1)
    yield closed("1 agent, 1 of 2 models fits", 20.0, 2, 1, one_fits, agent=1)
    yield closed("3 people alternate, 4 models", 10.0, 4, 1, alternating=3)
    yield closed("4 people in bursts, 5 models", 10.0, 5, 1, bursts=4)
    yield closed("12 people in bursts, 8 models, 2 cards", 20.0, 8, 2, bursts=12)
    yield closed("3 agents, 6 models", 20.0, 6, 1, agent=3)
    yield closed(
        "3 alternate, 6 bursts, 3 agents, 12 models, 2 cards", 15.0, 12, 2, alternating=3, bursts=6, agent=3
    )
    for count, think_s in ((1, 0.2), (3, 1.0)):
        name = f"{count} in constant demand of each, 1 of 2 models fits"
        yield replace(closed(name, think_s, 2, 1, one_fits, steady=count), each=True)


def main(
    *,
    full: bool = False,
    traces: Path | None = None,
    jobs: int = 1,
    only: str = "",
    table: bool = False,
) -> list[Row]:
    rows = []
    with ProcessPoolExecutor(jobs) as pool:
        for study in [study for study in studies(full=full, traces=traces) if only in study.name]:
            draws = range(study.full_draws if full else _QUICK_DRAWS)
            runs = {rule: [*pool.map(partial(study.run, rule), draws)] for rule in RULES}
            if table:
                _print(study, runs)
            rows.append(_row(study, runs, full=full))
    return rows


def compare(runs: dict[str, list[Report]], rule: str, measure: str) -> Interval:
    """Return a rule's measure over that without one, paired by draw."""
    what = MEASURES[measure]
    return interval([what(a) / max(0.001, what(b)) for a, b in zip(runs[rule], runs[BASE], strict=True)])


def _row(study: Study, runs: dict[str, list[Report]], *, full: bool) -> Row:
    mean, p99, worst, loads = (compare(runs, NEW, each) for each in [*MEASURES][:4])
    # A median of a few draws says little: only a full run can meet a target, or miss it.
    as_good = all(each.low <= _AS_GOOD for each in (mean, p99, worst)) and loads.low <= _LOADS
    return Row(
        f"kept {NEW}: {study.name}",
        statistics.median(r.mean_s for r in runs[NEW]),
        "s mean wait",
        BASE,
        mean.median,
        target=f"mean, p99, worst model not above 1 x {BASE}, loads {_LOADS} x" if full else None,
        met=as_good if full else None,
    )


def _print(study: Study, runs: dict[str, list[Report]]) -> None:
    base = runs[BASE]
    mean, p99, loads = (
        statistics.median(MEASURES[each](r) for r in base) for each in ("mean", "p99", "loads per request")
    )
    print(f"\n**{study.name}** ({len(base)} draws; {BASE}: mean {mean:.1f} s, p99 {p99:.0f} s,", end=" ")
    print(f"{loads:.2f} loads per request)\n")
    print(f"| kept | {' | '.join(MEASURES)} |\n|---|{'---|' * len(MEASURES)}")
    for rule in (OLD, NEW):
        print(f"| {rule} | {' | '.join(str(compare(runs, rule, each)) for each in MEASURES)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="", help="those with this text in their name")
    print_table(main(**vars(parser.parse_args()), table=True))
