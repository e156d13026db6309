"""What further copies are worth where models share cards: replays of the same requests, with and without.

Each model may have as many copies as there are cards. `python -m bench.copies_replay` has few draws;
`--full`, `--traces FOLDER` and `--jobs` are as in `bench.policies`. `--cards` divides the memory, `--slots`
are those of each engine.
"""

import argparse
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

from bench.policies import GB, MEASURES, Scene, compare, scenes
from bench.replay import UNBOUNDED, Report, report
from bench.rows import Row, print_table
from bench.workloads import draw_models, spec_of
from cotenant.domain.residencies import Copies
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.machine import Machine, card
from cotenant.simulation.world import World

_DRAWS = 2
_ARENA_BYTES = 24 * GB
_SHARE = 0.1


def main(
    *,
    full: bool = False,
    traces: Path | None = None,
    jobs: int = 1,
    cards: int = 4,
    slots: int = 4,
    most_draws: int = 20,
    table: bool = False,
) -> list[Row]:
    rows = []
    with ProcessPoolExecutor(jobs) as pool:
        for scene in scenes(full=full, traces=traces):
            if scene.trace is not None and scene.card_bytes > _ARENA_BYTES:
                # With one copy the queues of the whole day grow to thousands.
                scene = replace(scene, name=f"{scene.name}, a tenth of it", share=_SHARE)
            draws = range(min(scene.full_draws, most_draws) if full else _DRAWS)
            runs = [*pool.map(partial(replay_both, scene, cards, slots), draws)]
            found = {name: compare(runs, "copies", name) for name in (*MEASURES, "loads")}
            one = [run["lru"] for run in runs]
            if table:
                mean, p99 = (statistics.median(getattr(run, name) for run in one) for name in MEASURES[:2])
                cells = [f"{scene.name} ({mean:.1f} s, {p99:.0f} s)", *map(str, found.values())]
                print(f"| {' | '.join(cells)} |", flush=True)
            mean = statistics.median(run["copies"].mean_s for run in runs)
            ratio = found["mean_s"].median
            rows.append(Row(f"{scene.name}: copies", mean, "s mean wait", "one copy", ratio))
    return rows


def replay_both(scene: Scene, cards: int, slots: int, draw: int) -> dict[str, Report]:
    """Replay one draw of sizes with each; one copy is the base of `compare`."""
    return {
        "lru": _replay(scene, cards, slots, draw, Copies()),
        "copies": _replay(scene, cards, slots, draw, Copies(1, cards)),
    }


def _replay(scene: Scene, cards: int, slots: int, draw: int, copies: Copies) -> Report:
    requests = scene.requests(draw)
    names = sorted({request.model for request in requests})
    size = scene.card_bytes * 2 // cards
    drawn = draw_models(names, Random(f"sizes {draw}"), largest_bytes=round(size * 0.9))
    models = [replace(model, slots=slots) for model in drawn]
    machine = Machine([card(index, size) for index in range(cards)])
    world = World(Scheduler(UNBOUNDED), machine, models, Random(draw), watched=False)
    world.begin([replace(spec_of(model), copies=copies) for model in models])
    world.expect(requests)
    world.run()
    return report(world)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cards", type=int, default=4)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--draws", type=int, default=20, dest="most_draws")
    print_table(main(**vars(parser.parse_args()), table=True))
