"""How long a split over many GPUs takes."""

import time

from bench.rows import Row, print_table
from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.models import LayerShape, ModelKind, ModelShape, Recipe, SplitPolicy
from cotenant.domain.placements import Budget, Placement
from cotenant.domain.units import GIB, MIB
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.planner import PlanRequest, place

_GPUS, _LAYERS, _REPEATS = 16, 128, 20
_TARGET_S = 0.020


def main() -> list[Row]:
    rows = []
    for policy in SplitPolicy:
        request = PlanRequest("model", _shape(), Recipe(split_policy=policy))
        seconds = min(_seconds(request) for _ in range(_REPEATS))
        rows.append(
            Row(
                name=f"split, {policy}: {_GPUS} GPUs x {_LAYERS} layers",
                value=seconds * 1000,
                unit="ms",
                target=f"< {_TARGET_S * 1000:.0f} ms",
                met=seconds < _TARGET_S,
            )
        )
    return rows


def _seconds(request: PlanRequest) -> float:
    started = time.perf_counter()
    result = place(request, _budgets(), BudgetRules())
    seconds = time.perf_counter() - started
    if not isinstance(result, Placement):
        raise SystemExit(f"the benchmark's model does not fit: {result.reason}")
    return seconds


def _shape() -> ModelShape:
    layers = tuple(
        LayerShape(
            index=i,
            weight_bytes=(500 + 13 * (i % 7)) * MIB,
            n_head=64,
            k_elements=1024,
            v_elements=1024,
            n_ff=28672,
        )
        for i in range(_LAYERS)
    )
    return ModelShape(
        name="model",
        architecture="llama",
        kind=ModelKind.TEXT,
        file_bytes=0,
        tensor_bytes=sum(layer.weight_bytes for layer in layers) + GIB,
        parameters=110 * 10**9,
        quantisation="Q4_K_M",
        layers=layers,
        input_bytes=GIB,
        output_bytes=GIB,
        shared_bytes=256,
        tied=False,
        n_embd=8192,
        n_vocab=128256,
        n_ctx_train=131072,
    )


def _budgets() -> list[Budget]:
    budgets = []
    for index in range(_GPUS):
        budget = (6 + index % 3) * GIB
        device = Device(
            DeviceId(f"GPU-{index}"),
            DeviceKind.GPU,
            "card",
            index=index,
            total_bytes=budget + GIB,
            bandwidth_bytes_per_s=(500 + 20 * (index % 5)) * 10**9,
        )
        budgets.append(Budget(device, budget + GIB, budget))
    return budgets


if __name__ == "__main__":
    print_table(main())
