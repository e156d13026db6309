"""How long strategies take, and how far `balanced` is from a bound that OR-tools proves.

A gap is the standard deviation of the used share beyond the bound's, by the mean used share: at 1 % a card of
24 GB that is half full may be off by 120 MB. (The relative gap of the variance itself says little: where GPUs
differ by one MB it can still be halved.) Without OR-tools these rows are left out.
"""

import math
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any

from bench.rows import Row, print_table
from cotenant.domain.devices import DeviceId
from cotenant.domain.units import GIB, MIB
from cotenant.services.assign.balance import good_balance
from cotenant.services.assign.balance_exact import BalanceProblem, Cost, best_balance
from cotenant.services.assign.strategies import assign
from cotenant.services.model import Service, ServiceDevice, ServiceRole, Strategy

try:
    from ortools.math_opt.python import mathopt
    from ortools.sat.python import cp_model
except ImportError:
    cp_model = None

_TARGET_S = 0.100
_EXACT_TARGET_S = 1.0
_GAP = 0.01
_SEEDS = 5
_BOUND_SEEDS = 2
_BOUND_S = 10.0
_UNIT = 16 * MIB
"""Sizes are multiples of it, so that OR-tools counts them exactly."""

Draw = Callable[[Random], BalanceProblem]


def main() -> list[Row]:
    return [*_durations(), *_exact_durations(), *_gaps()]


def _durations() -> list[Row]:
    rows = []
    for strategy in Strategy:
        seconds = max(_seconds(strategy, Random(seed)) for seed in range(_SEEDS))
        rows.append(
            Row(
                f"strategy {strategy}: 64 services x 8 GPUs",
                seconds * 1000,
                "ms",
                target=f"< {_TARGET_S * 1000:.0f} ms",
                met=seconds < _TARGET_S,
            )
        )
    return rows


def _seconds(strategy: Strategy, dice: Random) -> float:
    services = [
        Service(
            f"service-{i}",
            vram_bytes=dice.randint(100, 4000) * MIB,
            role=ServiceRole.LLM if i % 20 == 0 else ServiceRole.OTHER,
            latency_critical=i % 5 == 0,
            budget_env="VRAM_BUDGET_GB" if i % 7 == 0 else None,
        )
        for i in range(64)
    ]
    devices = [
        ServiceDevice(
            DeviceId(f"GPU-{i}"), i, "card", dice.choice([12, 16, 24, 48]) * GIB, dice.randint(0, 3000) * MIB
        )
        for i in range(8)
    ]
    return _least(partial(assign, strategy, services, devices))


def _exact_durations() -> list[Row]:
    rows = []
    for name, draw in _SMALL.items():
        seconds = max(_least(partial(best_balance, draw(dice))) for dice in _dice(_SEEDS))
        rows.append(
            Row(
                f"balanced, exact: 12 x 4, {name}",
                seconds * 1000,
                "ms",
                target=f"< {_EXACT_TARGET_S * 1000:.0f} ms",
                met=seconds < _EXACT_TARGET_S,
            )
        )
    return rows


def _gaps() -> list[Row]:
    if cp_model is None:
        print("OR-tools is not installed: how far balanced is from a proven bound was not measured")
        return []
    rows = []
    for name, draw in _LARGE.items():
        gaps = [_gap(problem) for problem in map(draw, _dice(_BOUND_SEEDS))]
        rows.append(
            Row(
                f"balanced, gap to a bound: {name}",
                max(gaps) * 100,
                "%",
                target=f"<= {_GAP:.0%}",
                met=max(gaps) <= _GAP,
            )
        )
    return rows


def _gap(problem: BalanceProblem) -> float:
    """Return the larger of the gaps: overflow by all that is needed, deviation by the mean share."""
    found = problem.cost(_chosen(problem))
    excess, spread = _bound(problem, found)
    n_gpus = len(problem.totals)
    loads = problem.loads(_chosen(problem))
    mean = sum(load / total for load, total in zip(loads, problem.totals, strict=True)) / n_gpus
    apart = math.sqrt(max(0.0, found[1]) / n_gpus) - math.sqrt(spread / n_gpus)
    return round(max((found[0] - excess) / sum(problem.sizes), apart / mean), 9)


def _chosen(problem: BalanceProblem) -> tuple[int, ...]:
    small = len(problem.sizes) <= 12 and len(problem.totals) <= 4
    return best_balance(problem) if small else good_balance(problem)


def _bound(problem: BalanceProblem, found: Cost) -> Cost:
    """Return what no layout goes below: overflow, then spread among those that overflow no more than `found`.

    CP-SAT proves it where GPUs have few services each, SCIP where large ones stand among many small ones.
    """
    excess = _least_overflow(problem) if found[0] else 0
    spread = _spread_by_cp_sat(problem, found)
    if spread < found[1] * (1 - _GAP):
        spread = max(spread, _spread_by_scip(problem, found))
    return excess, spread


def _least_overflow(problem: BalanceProblem) -> int:
    model, _, over = _cp_model(problem)
    model.minimize(sum(over))
    return math.ceil(_proven(model) - 1e-6) * _UNIT


def _spread_by_cp_sat(problem: BalanceProblem, found: Cost) -> float:
    """Look only at layouts no worse than `found`, which makes the bound better: at worst it is `found`."""
    model, shares, over = _cp_model(problem)
    model.add(sum(over) <= found[0] // _UNIT)
    per_share = len(shares) * (math.lcm(*problem.totals) // _UNIT)
    limit = math.isqrt(math.ceil(found[1] * per_share * per_share)) + 1
    whole = sum(shares)
    if len({*problem.totals}) == 1:
        whole = (sum(problem.sizes) + sum(problem.bases)) // _UNIT
    squares = []
    for share in shares:
        away, square = model.new_int_var(-limit, limit, ""), model.new_int_var(0, limit * limit, "")
        model.add(away == len(shares) * share - whole)
        model.add_multiplication_equality(square, [away, away])
        squares.append(square)
    model.minimize(sum(squares))
    return max(0.0, _proven(model)) / (per_share * per_share)


def _spread_by_scip(problem: BalanceProblem, found: Cost) -> float:
    """Shares are in per cent, so that the solver's tolerances do not matter."""
    model = mathopt.Model()
    at = [[model.add_binary_variable() for _ in problem.totals] for _ in problem.sizes]
    for row in at:
        model.add_linear_constraint(sum(row) == 1)
    mean, over, squares = model.add_variable(lb=0), [], []
    for gpu, (total, base) in enumerate(zip(problem.totals, problem.bases, strict=True)):
        sizes = zip(problem.sizes, at, strict=True)
        share = 100 * base / total + sum(100 * size / total * row[gpu] for size, row in sizes)
        beyond, away = model.add_variable(lb=0), model.add_variable()
        model.add_linear_constraint(beyond >= share - 100)
        model.add_linear_constraint(away == share - mean)
        over.append(beyond * (total / GIB / 100))
        squares.append(away * away)
    model.add_linear_constraint(sum(over) <= found[0] / GIB + 1e-6)
    model.minimize(sum(squares))
    limits = mathopt.SolveParameters(time_limit=timedelta(seconds=_BOUND_S), random_seed=0)
    result = mathopt.solve(model, mathopt.SolverType.GSCIP, params=limits)
    return max(0.0, result.dual_bound()) / 100**2


def _cp_model(problem: BalanceProblem) -> tuple[Any, list[Any], list[Any]]:
    """Return a model, used shares times the least common multiple of totals, and overflows, in `_UNIT`."""
    model = cp_model.CpModel()
    at = [[model.new_bool_var("") for _ in problem.totals] for _ in problem.sizes]
    alike = len({*zip(problem.totals, problem.bases, strict=True)}) == 1
    for i, row in enumerate(at):
        model.add_exactly_one(row)
        if alike:
            model.add_bool_and([~other for other in row[i + 1 :]])
    shares, over = [], []
    for gpu, (total, base) in enumerate(zip(problem.totals, problem.bases, strict=True)):
        sizes = zip(problem.sizes, at, strict=True)
        load = base // _UNIT + sum(size // _UNIT * row[gpu] for size, row in sizes)
        beyond = model.new_int_var(0, (sum(problem.sizes) + base) // _UNIT, "")
        model.add(beyond >= load - total // _UNIT)
        shares.append(load * (math.lcm(*problem.totals) // total))
        over.append(beyond)
    return model, shares, over


def _proven(model: Any) -> float:
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = _BOUND_S
    solver.parameters.num_workers = 4
    solver.parameters.random_seed = 0
    solver.solve(model)
    return solver.best_objective_bound


def _least(call: Callable[[], object], repeats: int = 3) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _dice(count: int) -> list[Random]:
    return [Random(seed) for seed in range(count)]


def _sizes(dice: Random, count: int, low_mib: int, high_mib: int) -> tuple[int, ...]:
    return tuple(dice.randint(low_mib * MIB // _UNIT, high_mib * MIB // _UNIT) * _UNIT for _ in range(count))


def _equal(count: int, n_gpus: int, low_mib: int, high_mib: int) -> Draw:
    return lambda dice: BalanceProblem(
        _sizes(dice, count, low_mib, high_mib), (24 * GIB,) * n_gpus, (0,) * n_gpus
    )


def _mixed(count: int, n_gpus: int, low_mib: int, high_mib: int) -> Draw:
    return lambda dice: BalanceProblem(
        _sizes(dice, count, low_mib, high_mib),
        tuple(dice.choice([12, 16, 24, 48]) * GIB for _ in range(n_gpus)),
        _sizes(dice, n_gpus, 0, 2000),
    )


def _with_large(count: int, n_gpus: int) -> Draw:
    return lambda dice: BalanceProblem(
        (*_sizes(dice, 2, 15000, 22000), *_sizes(dice, count - 2, 100, 1000)),
        (24 * GIB,) * n_gpus,
        _sizes(dice, n_gpus, 0, 2000),
    )


_SMALL: dict[str, Draw] = {
    "equal cards": _equal(12, 4, 500, 6000),
    "mixed cards": _mixed(12, 4, 500, 6000),
    "two large services": _with_large(12, 4),
    "too much for the cards": _equal(12, 4, 3000, 16000),
}
_LARGE: dict[str, Draw] = {
    "12 x 4, mixed cards": _mixed(12, 4, 500, 8000),
    "16 x 4": _equal(16, 4, 500, 8000),
    "18 x 6": _equal(18, 6, 500, 12000),
    "20 x 5, mixed cards": _mixed(20, 5, 500, 6000),
    "24 x 8, too much": _equal(24, 8, 1000, 16500),
    "64 x 8": _equal(64, 8, 100, 4500),
    "64 x 8, two large services": _with_large(64, 8),
}


if __name__ == "__main__":
    print_table(main())
