"""What an advisor is worth that knows every request to come, asked once a minute.

Each row is the mean wait with advice, and its ratio to the mean wait of the same requests without. Random
advice shows what a useless advisor costs.
"""

import math
import statistics
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random

from bench.policies import Scene, scenes
from bench.replay import UNBOUNDED, report
from bench.rows import Row, print_table
from bench.workloads import draw_models, spec_of
from cotenant.domain.advisors import MAX_PREFETCHES, MAX_SOFT_PIN_S, MAX_SOFT_PINS, Advice, Hint
from cotenant.scheduling.events import AdviceGiven
from cotenant.scheduling.model_state import ModelState
from cotenant.scheduling.scheduler import Scheduler
from cotenant.simulation.machine import Machine, card
from cotenant.simulation.models import Request
from cotenant.simulation.world import World

_EVERY_S, _KEEP_ALIVE_S, _DRAWS = 60.0, 300.0, 3

Adviser = Callable[[float, Mapping[str, ModelState]], Mapping[str, Hint]]


def knows_all(requests: Sequence[Request]) -> Adviser:
    """Return an adviser that pins and prefetches whatever is requested soonest."""
    arrivals: dict[str, list[float]] = {}
    for request in requests:
        arrivals.setdefault(request.model, []).append(request.at)

    def next_at(name: str, now: float) -> float:
        own = arrivals.get(name, [])
        index = bisect_right(own, now)
        return own[index] if index < len(own) else math.inf

    def advise(now: float, models: Mapping[str, ModelState]) -> Mapping[str, Hint]:
        soonest = sorted(models, key=lambda name: next_at(name, now))
        loaded = [name for name in soonest if models[name].residency is not None]
        cold = [name for name in soonest if models[name].residency is None][:MAX_PREFETCHES]
        pinned, hints = loaded[:MAX_SOFT_PINS], {}
        for name in (*loaded, *cold):
            gap = next_at(name, now) - now
            factor = 4.0 if gap <= 4 * _KEEP_ALIVE_S else 0.25
            hints[name] = Hint(
                models[name].loads,
                factor,
                min(MAX_SOFT_PIN_S, gap) if name in pinned and math.isfinite(gap) else 0.0,
                prefetch=name in cold and math.isfinite(gap),
            )
        return hints

    return advise


def knows_nothing(seed: int) -> Adviser:
    """Return an adviser that draws its hints."""
    rng = Random(f"advice {seed}")

    def advise(now: float, models: Mapping[str, ModelState]) -> Mapping[str, Hint]:
        pinned = rng.sample([*models], min(MAX_SOFT_PINS, len(models)))
        cold = [name for name, model in models.items() if model.residency is None]
        ahead = rng.sample(cold, min(MAX_PREFETCHES, len(cold)))
        return {
            name: Hint(
                model.loads,
                math.exp(rng.uniform(math.log(0.25), math.log(4.0))),
                rng.uniform(0, MAX_SOFT_PIN_S) if name in pinned else 0.0,
                prefetch=name in ahead,
            )
            for name, model in models.items()
        }

    return advise


def mean_wait_s(scene: Scene, draw: int, policy: str, adviser: Adviser | None) -> float:
    """Replay a scene with an adviser or none; return the mean wait in seconds."""
    requests = scene.requests(draw)
    names = sorted({request.model for request in requests})
    models = draw_models(names, Random(f"sizes {draw}"), largest_bytes=round(scene.card_bytes * 0.9))
    cards = [card(index, scene.card_bytes) for index in range(2)]
    scheduler = Scheduler(replace(UNBOUNDED, policy=policy))
    world = World(scheduler, Machine(cards), models, Random(draw), watched=False)
    world.begin([spec_of(model, keep_alive_s=_KEEP_ALIVE_S, whole_card=False) for model in models])
    world.expect(requests)

    def advise() -> None:
        now = world.queue.now
        if adviser is not None and now <= requests[-1].at:
            world.send(AdviceGiven(now, Advice(now, adviser(now, scheduler.state.models))))
            world.queue.after(_EVERY_S, advise)

    world.queue.after(0.0, advise)
    world.run()
    return report(world).mean_s


def main() -> list[Row]:
    rows = []
    for scene in scenes(full=False, traces=None)[:1]:
        for policy in ("gdsf",):
            plain = [mean_wait_s(scene, draw, policy, None) for draw in range(_DRAWS)]
            advisers = {
                "knows all": [knows_all(scene.requests(draw)) for draw in range(_DRAWS)],
                "random": [knows_nothing(draw) for draw in range(_DRAWS)],
            }
            for label, drawn in advisers.items():
                advised = [mean_wait_s(scene, draw, policy, adviser) for draw, adviser in enumerate(drawn)]
                ratio = statistics.median(a / max(0.001, p) for a, p in zip(advised, plain, strict=True))
                rows.append(
                    Row(
                        f"{scene.name}, {policy}: {label}",
                        statistics.median(advised),
                        "s mean wait",
                        "no advice",
                        ratio,
                    )
                )
    return rows


if __name__ == "__main__":
    print_table(main())
