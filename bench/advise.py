"""How long `advise` takes, what it recommends, and whether twice the same: `python -m bench.advise [CSV …]`.

Without files the log is drawn: 10,000 requests for eight models on two cards of 24 GiB that hold six of them.
"""

import sys
import time
from random import Random

from cotenant.clock import SystemClock
from cotenant.config.configuration import Configuration
from cotenant.daemon.workload import Workload, advice_as_json, read_logs
from cotenant.hardware.gpus.inventory import probe
from cotenant.scheduling.model_spec import ModelSpec
from cotenant.simulation.advise import advise
from cotenant.simulation.models import Request, fit_size
from cotenant.simulation.variant import Tenant

SIZE = 8 << 30


def drawn(count: int = 10_000, models: int = 8) -> list[Request]:
    """Requests of models whose popularity falls off as 1/rank, in bursts."""
    rng, at = Random(0), 0.0
    found: list[Request] = []
    weights = [1 / rank for rank in range(1, models + 1)]
    while len(found) < count:
        at += rng.expovariate(1 / 20)
        (model,) = rng.choices(range(models), weights)
        for _ in range(rng.randint(1, 8)):
            found.append(Request(at + rng.uniform(0, 10), f"model-{model}", 200, rng.randint(20, 400)))
    return sorted(found[:count], key=lambda request: request.at)


def report(name: str, requests: list[Request], stretch: float = 1.0) -> None:
    """Advise twice, and print what came of it."""
    names = sorted({request.model for request in requests})
    stated = tuple(
        Tenant(ModelSpec(each, fit_size(each, SIZE), slots=4, load_s=SIZE / 1e9), 600.0) for each in names
    )
    inventory = probe("2x24GiB", SystemClock()).inventory()
    workload = Workload(requests, Configuration(), inventory, stated=stated)
    found = []
    for _ in range(2):
        begun = time.process_time()
        advice = advise(workload.variant, workload.dimensions, requests)
        found.append(advice_as_json(advice, workload, {}))
        took_s = time.process_time() - begun
    assert found[0] == found[1], "the same seed gave another recommendation"
    counts = f"{found[0]['requests']} requests, {found[0]['replays']} replays"
    print(f"{name} x{stretch:g}: {counts}, {took_s:.1f} s of processor time")
    print(found[0]["text"], found[0]["yaml"], sep="\n")


if __name__ == "__main__":
    if not sys.argv[1:]:
        report("drawn", drawn())
    for argument in sys.argv[1:]:
        path, _, factor = argument.partition("*")
        report(path, [*read_logs([path], stretch=float(factor or 1)).requests], float(factor or 1))
