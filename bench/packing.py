"""What FGD's choice of a card is worth against the fullest that fits: replays of the same requests.

FGD (Weng et al., USENIX ATC 2023) places a model where fragmentation grows least. It is tried among the cards
in use on which a model fits alone: an unused one is still taken first. `python -m bench.packing` has few
draws; `--full`, `--traces FOLDER` and `--jobs` are as in `bench.policies`. `--cards` divides the memory.
"""

import argparse
import statistics
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from unittest.mock import patch

from bench.policies import MEASURES, Scene, compare, scenes
from bench.replay import UNBOUNDED, Report, report
from bench.rows import Row, print_table
from bench.workloads import draw_models, spec_of
from cotenant.domain.devices import DeviceId
from cotenant.domain.placements import Placement, Refusal
from cotenant.planning.fragmentation import measure
from cotenant.planning.needs import Needs
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.queries.fragmentation import free_memory
from cotenant.scheduling.room import Room
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.machine import Machine, card
from cotenant.simulation.world import World

_DRAWS = 2


def main(
    *, full: bool = False, traces: Path | None = None, jobs: int = 1, cards: int = 4, table: bool = False
) -> list[Row]:
    rows = []
    with ProcessPoolExecutor(jobs) as pool:
        for scene in scenes(full=full, traces=traces):
            draws = range(scene.full_draws if full else _DRAWS)
            runs = [*pool.map(partial(replay_both, scene, cards), draws)]
            found = {name: compare(runs, "fgd", name) for name in (*MEASURES, "loads")}
            if table:
                print(f"{scene.name}, {cards} cards, {len(runs)} draws: fgd over best fit:", flush=True)
                print(" | ".join(f"{name} {interval}" for name, interval in found.items()), flush=True)
            mean = statistics.median(run["fgd"].mean_s for run in runs)
            rows.append(Row(f"{scene.name}: fgd", mean, "s mean wait", "best fit", found["mean_s"].median))
    return rows


def replay_both(scene: Scene, cards: int, draw: int) -> dict[str, Report]:
    """Replay one draw of sizes with each choice; best fit is the base of `compare`."""
    return {"lru": _replay(scene, cards, draw, fgd=False), "fgd": _replay(scene, cards, draw, fgd=True)}


def _replay(scene: Scene, cards: int, draw: int, *, fgd: bool) -> Report:
    requests = scene.requests(draw)
    names = sorted({request.model for request in requests})
    size = scene.card_bytes * 2 // cards
    models = draw_models(names, Random(f"sizes {draw}"), largest_bytes=round(size * 0.9))
    scheduler = Scheduler(replace(UNBOUNDED, policy="gdsf"))
    machine = Machine([card(index, size) for index in range(cards)])
    world = World(scheduler, machine, models, Random(draw), watched=False)
    with _by_fragmentation(world) if fgd else _as_it_is():
        world.begin([spec_of(model) for model in models])
        world.expect(requests)
        world.run()
    return report(world)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _by_fragmentation(world: World) -> Iterator[None]:
    """Have the scheduler choose, among the used cards on which a model fits, by what becomes fragmented."""
    needs, state = Needs(), world.scheduler.state

    by_best_fit = Room.choose

    def choose(
        room: Room, model: ModelState, nodes: Iterable[Sequence[DeviceId]] | None = None
    ) -> Placement | Refusal:
        first = by_best_fit(room, model, nodes)
        if isinstance(first, Refusal) or model.spec.together or len(first.used_shares) != 1:
            return first
        if first.used_shares[0].device.id not in state.ledger.claimed_devices():
            return first
        memory = free_memory(state, world.queue.now)
        others = tuple(each for each in memory.models if each.name != model.spec.name)

        def grown(placed: Placement) -> float:
            (share,) = placed.used_shares
            taken = share.parts.total
            rooms = tuple(
                replace(
                    room,
                    budget=replace(room.budget, budget_bytes=room.budget.budget_bytes - taken),
                    free_bytes=room.free_bytes - taken,
                )
                if room.budget.device.id == share.device.id
                else room
                for room in memory.rooms
            )
            after = measure(replace(memory, models=others, rooms=rooms), needs)
            return after.ratio * after.free_bytes

        budgets = room.budgets([*state.ledger.readings])
        alone = (model.fit([budget]) for budget in budgets if budget.left_out is None)
        return min((found for found in alone if isinstance(found, Placement)), key=grown)

    with patch.object(Room, "choose", choose):
        yield


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cards", type=int, default=4)
    options = parser.parse_args()
    print_table(
        main(
            full=options.full,
            traces=options.traces,
            jobs=options.jobs,
            cards=options.cards,
            table=True,
        )
    )
