"""What the choice of victims is worth: policies replayed over the same requests, relative to LRU.

`python -m bench.policies` takes a minute and its intervals are wide; `--full` takes many draws of sizes, in
as many processes as `--jobs` says. `--traces FOLDER` adds the recorded requests found there.
"""

import argparse
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from bench.replay import BASELINES, Report
from bench.rows import Row, print_table
from bench.workloads import ARENA, CLIENTS, Profile, draw_models
from cotenant.simulation.machine import card
from cotenant.simulation.models import Request
from cotenant.simulation.trace import read_trace

GB = 10**9
MEASURES = ("mean_s", "p99_s", "worst_model_s")
_QUICK_DRAWS, _RESAMPLES = 2, 2000


@dataclass(frozen=True)
class Scene:
    """Requests of a generator or a trace, and two cards of so many bytes."""

    name: str
    profile: Profile | None
    trace: Path | None
    stretch: float
    card_bytes: int
    share: float = 1.0
    full_draws: int = 20

    def requests(self, draw: int) -> tuple[Request, ...]:
        if self.trace is not None:
            with self.trace.open(encoding="utf-8") as lines:
                found = read_trace({self.trace.name: lines}, stretch=self.stretch).requests
        else:
            found = self.profile.stretched(self.stretch).draw(Random(f"requests {draw}"))
        return tuple(r for r in found if r.at <= found[-1].at * self.share)


@dataclass(frozen=True)
class Interval:
    """A median over draws, and the bounds of its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def scenes(*, full: bool, traces: Path | None) -> list[Scene]:
    """A quick run replays a part of the long day."""
    share = 1.0 if full else 0.1
    found = [
        Scene("arena-like, 12 x time", ARENA, None, 12, 24 * GB),
        Scene("arena-like, 3 x time", ARENA, None, 3, 24 * GB),
        Scene("clients-like, a day", CLIENTS, None, 1, 48 * GB, share, full_draws=8),
    ]
    if traces is not None:
        arena, day = traces / "lmsys27_vtc.csv", traces / "servegen_day_lowrate.csv"
        if arena.exists():
            found.append(Scene("lmsys27 trace, 12 x time", None, arena, 12, 24 * GB))
            found.append(Scene("lmsys27 trace, 3 x time", None, arena, 3, 24 * GB))
        if day.exists():
            found.append(Scene("servegen trace, a day", None, day, 1, 48 * GB, share, full_draws=8))
    return found


def replay_all(scene: Scene, draw: int) -> dict[str, Report]:
    """Replay one draw of sizes under every policy: the same requests, models and load times."""
    requests = scene.requests(draw)
    names = sorted({request.model for request in requests})
    models = draw_models(names, Random(f"sizes {draw}"), largest_bytes=round(scene.card_bytes * 0.9))
    cards = [card(index, scene.card_bytes) for index in range(2)]
    return {name: way.run(requests, models, cards, seed=draw) for name, way in BASELINES.items()}


def compare(runs: Sequence[dict[str, Report]], policy: str, measure: str) -> Interval:
    """Return a policy's measure over LRU's, paired by draw."""
    return interval(
        [getattr(run[policy], measure) / max(0.001, getattr(run["lru"], measure)) for run in runs]
    )


def interval(ratios: Sequence[float]) -> Interval:
    """Return the median of paired ratios with the bounds of its bootstrap interval."""
    dice = Random(0)
    medians = sorted(statistics.median(dice.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    return Interval(
        statistics.median(ratios), medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES)]
    )


def main(*, full: bool = False, traces: Path | None = None, jobs: int = 1, table: bool = False) -> list[Row]:
    rows = []
    with ProcessPoolExecutor(jobs) as pool:
        for scene in scenes(full=full, traces=traces):
            draws = scene.full_draws if full else _QUICK_DRAWS
            runs = [*pool.map(partial(replay_all, scene), range(draws))]
            if table:
                _print_scene(scene, runs)
            rows += _rows(scene, runs)
    return rows


def _rows(scene: Scene, runs: Sequence[dict[str, Report]]) -> list[Row]:
    rows = []
    for policy in BASELINES:
        if policy == "lru":
            continue
        mean = compare(runs, policy, "mean_s").median
        rows.append(
            Row(
                f"{scene.name}: {policy}",
                statistics.median(run[policy].mean_s for run in runs),
                "s mean wait",
                "lru",
                mean,
            )
        )
    return rows


def _print_scene(scene: Scene, runs: Sequence[dict[str, Report]]) -> None:
    lru = [run["lru"] for run in runs]
    print(
        f"\n{scene.name}, {len(runs)} draws; lru: mean {statistics.median(r.mean_s for r in lru):.1f} s, "
        f"p99 {statistics.median(r.p99_s for r in lru):.0f} s, "
        f"within 10 s {statistics.median(r.within_10_s for r in lru):.0%}, "
        f"{statistics.median(r.loads for r in lru):.0f} loads"
    )
    print("| policy | mean | p99 | worst model | loads |\n|---|---|---|---|---|")
    for policy in BASELINES:
        shares = " | ".join(str(compare(runs, policy, measure)) for measure in MEASURES)
        print(f"| {policy} | {shares} | {compare(runs, policy, 'loads').median:.2f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    print_table(main(full=options.full, traces=options.traces, jobs=options.jobs, table=True))
