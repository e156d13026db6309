"""Proposes changes after which a model fits. Every proposal is planned before it is made."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from cotenant.analysis.footprint import Costs
from cotenant.domain.devices import Device, DeviceId, DeviceKind, DeviceOrder
from cotenant.domain.engine_kinds import PlanMethod
from cotenant.domain.exit_causes import Lacking
from cotenant.domain.models import (
    ALL_LAYERS,
    FEWEST_EXPERTS,
    MOST_LAYERS,
    CacheType,
    FlashAttention,
    LayerShape,
    ModelShape,
    Recipe,
    SplitMode,
)
from cotenant.domain.placements import Budget, Placement, Refusal, Remedy
from cotenant.domain.units import GIB, MIB, format_bytes, parse_bytes
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.host_memory import on_host
from cotenant.planning.over_machines import fits_no_machine, place_over_machines
from cotenant.planning.planner import PlanRequest, expert_blocks, leave_to_engine, place
from cotenant.planning.speed import HOST_BYTES_PER_S, most_tokens_per_s

_CONTEXT_STEP: Final = 256
_LEAST_CONTEXT: Final = 512
_LEAST_RESERVE: Final = 256 * MIB
_RESERVE_STEP: Final = 64 * MIB
_GPU_STEP: Final = 256 * MIB
_LARGEST_GPU: Final = 512 * GIB

_BITS_PER_WEIGHT: Final = {
    "Q8_0": 8.50,
    "Q6_K": 6.56,
    "Q5_K_M": 5.70,
    "Q4_K_M": 4.89,
    "IQ4_XS": 4.46,
    "Q3_K_M": 4.00,
    "IQ3_M": 3.76,
    "Q3_K_S": 3.64,
    "Q2_K": 3.16,
    "IQ2_M": 2.93,
    "IQ2_XS": 2.59,
}
"""Bits per weight of llama.cpp's quantisations as its quantize tool lists them for Llama 3.1 8B."""


def plan(
    request: PlanRequest,
    budgets: Sequence[Budget],
    rules: BudgetRules,
    host: Budget | None = None,
    *,
    by_engine: bool = False,
) -> Placement | Refusal:
    """Place a model; a Refusal says what would fit. Raises BadSplit for a manual split.

    `host` is what may be used of host RAM besides the devices, None if that is no concern. `by_engine` leaves
    the layout to the engine. Raises BadRecipe if the recipe does not. What no machine could hold is placed
    over several if the request says so.
    """
    result = on_host((leave_to_engine if by_engine else place)(request, budgets, rules), host)
    if isinstance(result, Refusal) and request.across_nodes and fits_no_machine(request, budgets, rules):
        result = on_host(place_over_machines(request, budgets, rules), host)
    computed = request.recipe.engine.traits.planning is PlanMethod.PER_LAYER
    if isinstance(result, Placement) or not result.shortfalls or not computed:
        return result
    return replace(result, remedies=tuple(_remedies(request, tuple(budgets), rules, host)))


def after_failed_load(
    request: PlanRequest, placement: Placement, lacking: Lacking, rules: BudgetRules
) -> tuple[Remedy, ...]:
    """Return what would fit if a device has no more than the engine got of it before an allocation failed."""
    seen = [share for share in placement.used_shares if share.device.kind is not DeviceKind.HOST]
    if request.recipe.engine.traits.planning is not PlanMethod.PER_LAYER or lacking.device >= len(seen):
        return ()
    short = seen[lacking.device]
    got = max(0, short.parts.total - lacking.size_bytes)
    budgets = [
        # What the driver said to be free was wrong, so it does not count.
        replace(share.budget, budget_bytes=min(got, share.budget.budget_bytes), free_bytes=None)
        if share is short
        else share.budget
        for share in placement.shares
    ]
    result = plan(request, budgets, rules)
    return result.remedies if isinstance(result, Refusal) else ()


def _remedies(
    request: PlanRequest, budgets: tuple[Budget, ...], rules: BudgetRules, host: Budget | None
) -> Iterator[Remedy]:
    def attempt(recipe: Recipe, shape: ModelShape | None = None) -> Placement | None:
        changed = replace(request, recipe=recipe, shape=shape or request.shape)
        result = on_host(place(changed, budgets, rules), host)
        return result if isinstance(result, Placement) else None

    recipe, left_out = request.recipe, ""
    if host is not None and (recipe.mlock or not recipe.mmap):
        mapped = replace(recipe, mmap=True, mlock=False)
        if attempt(mapped):
            yield Remedy("the file mapped instead of held in host RAM: leave --no-mmap and --mlock out")
            return
    if recipe.split_mode is not SplitMode.LAYER:
        if attempt(replace(recipe, split_mode=SplitMode.LAYER)):
            yield Remedy("its layers spread over the GPUs: leave --split-mode out")
    elif recipe.tensor_split or not recipe.smart_split:
        flag = "--tensor-split" if recipe.tensor_split else "--no-smart-split"
        recipe, left_out = replace(recipe, tensor_split=(), smart_split=True), f", with {flag} left out"
        if attempt(recipe):
            yield Remedy(f"the split that Cotenant computes: leave {flag} out")
            return

    def on(more: Sequence[Budget]) -> bool:
        return isinstance(on_host(place(request, more, rules), host), Placement)

    found = [*_smaller_context(recipe, attempt), *_quantised_cache(recipe, attempt)]
    found = found or [*_smaller_context_and_cache(recipe, attempt)]
    found += _experts_in_host_ram(request.shape, recipe, attempt, host)
    found += _fewer_layers(recipe, attempt, host)
    yield from (replace(remedy, text=remedy.text + left_out) for remedy in found)
    yield from _smaller_reserve(on, budgets, rules)
    if recipe.n_gpu_layers != 0 and not request.recipe.tensor_split:
        yield from _another_gpu(on, budgets, rules)
    found = [*_smaller_quantisation(request.shape, recipe, attempt)]
    yield from (replace(remedy, text=remedy.text + left_out) for remedy in found)


Attempt = Callable[..., Placement | None]


def _smaller_context(recipe: Recipe, attempt: Attempt, also: str = "") -> Iterator[Remedy]:
    low, high = _LEAST_CONTEXT // _CONTEXT_STEP, (recipe.n_ctx - 1) // _CONTEXT_STEP
    best = _largest(low, high, lambda steps: attempt(replace(recipe, n_ctx=steps * _CONTEXT_STEP)))
    if best is not None:
        n_ctx = best * _CONTEXT_STEP
        text = f"a context of {n_ctx:,} tokens" + (" with a KV cache in q8_0" if also else "")
        yield Remedy(text, f"--n-ctx {n_ctx}{also}")


def _quantised_cache(recipe: Recipe, attempt: Attempt) -> Iterator[Remedy]:
    if recipe.flash_attention is FlashAttention.OFF:
        return
    bits = {CacheType.F32: 32, CacheType.F16: 16, CacheType.BF16: 16, CacheType.Q8_0: 8}
    for kind in (CacheType.Q8_0, CacheType.Q4_0):
        if bits.get(kind, 4) < bits.get(recipe.cache_type_k, 4) and attempt(_with_cache(recipe, kind)):
            yield Remedy(f"a KV cache in {kind}", f"--cache-type-k {kind} --cache-type-v {kind}")
            return


def _smaller_context_and_cache(recipe: Recipe, attempt: Attempt) -> Iterator[Remedy]:
    if recipe.flash_attention is not FlashAttention.OFF and not recipe.cache_type_k.quantised:
        flags = f" --cache-type-k {CacheType.Q8_0} --cache-type-v {CacheType.Q8_0}"
        yield from _smaller_context(_with_cache(recipe, CacheType.Q8_0), attempt, also=flags)


def _experts_in_host_ram(
    shape: ModelShape, recipe: Recipe, attempt: Attempt, host: Budget | None
) -> Iterator[Remedy]:
    if recipe.n_gpu_layers == 0 or not expert_blocks(shape):
        return
    n_gpu_layers = ALL_LAYERS if isinstance(recipe.n_gpu_layers, str) else recipe.n_gpu_layers
    placement = attempt(replace(recipe, n_gpu_layers=n_gpu_layers, n_cpu_moe=FEWEST_EXPERTS))
    if placement is None or (host is not None and placement.host.total > host.budget_bytes):
        return
    blocks = placement.recipe.n_cpu_moe
    begin = shape.n_layers + 1 - placement.n_gpu_layers
    size = format_bytes(Costs(shape, placement.recipe, begin=begin).hosted_experts)
    yield Remedy(
        f"the experts of {blocks} layers in host RAM, {size}; at most about "
        f"{most_tokens_per_s(shape, placement):.0f} tokens/s if that gives {HOST_BYTES_PER_S / 1e9:.0f} GB/s",
        f"--n-cpu-moe {blocks}",
    )


def _fewer_layers(recipe: Recipe, attempt: Attempt, host: Budget | None) -> Iterator[Remedy]:
    if recipe.n_gpu_layers == 0:
        return
    placement = attempt(replace(recipe, n_gpu_layers=MOST_LAYERS))
    if placement is not None and host is not None and placement.host.total > host.budget_bytes:
        return
    if placement is not None and placement.n_gpu_layers <= placement.n_layers:
        yield Remedy(
            f"{placement.n_gpu_layers} of {placement.n_layers + 1} layers on the GPU and "
            f"{format_bytes(placement.host.total)} in host RAM, slower",
            f"--n-gpu-layers {placement.n_gpu_layers}",
        )


Fits = Callable[[Sequence[Budget]], bool]


def _smaller_reserve(fits: Fits, budgets: tuple[Budget, ...], rules: BudgetRules) -> Iterator[Remedy]:
    def attempt(steps: int) -> bool:
        reserve = steps * _RESERVE_STEP
        larger = [
            replace(b, budget_bytes=max(0, b.free_bytes - b.device.reserve(reserve)))
            if b.left_out is None and b.free_bytes is not None
            else b
            for b in budgets
        ]
        return fits(larger)

    best = _largest(_LEAST_RESERVE // _RESERVE_STEP, (rules.reserve_bytes - 1) // _RESERVE_STEP, attempt)
    if best is not None:
        reserve = best * _RESERVE_STEP
        yield Remedy(f"a reserve of {reserve // MIB} MiB per device", f"--reserve-mib {reserve // MIB}")


def _another_gpu(fits: Fits, budgets: tuple[Budget, ...], rules: BudgetRules) -> Iterator[Remedy]:
    def rank(budget: Budget) -> int:
        of = {DeviceOrder.FREE_DESC: budget.free_bytes, DeviceOrder.TOTAL_DESC: budget.device.total_bytes}
        return -(of.get(rules.order) or 0)

    def attempt(steps: int) -> bool:
        # As it is printed: what fits must not be rounded down.
        free = parse_bytes(format_bytes(steps * _GPU_STEP))
        device = Device(DeviceId("another"), DeviceKind.GPU, "another GPU", index=None, total_bytes=free)
        more = Budget(device, free, free - rules.reserve_bytes)
        usable = more.budget_bytes >= rules.min_budget_bytes
        return usable and fits(sorted((*budgets, more), key=rank))

    most = _LARGEST_GPU // _GPU_STEP
    least = 1 + bisect_left(range(1, most + 1), True, key=attempt)
    if least <= most:
        more = "one more GPU" if any(b.device.kind is not DeviceKind.HOST for b in budgets) else "a GPU"
        yield Remedy(f"{more} with {format_bytes(least * _GPU_STEP)} free")


def _smaller_quantisation(shape: ModelShape, recipe: Recipe, attempt: Attempt) -> Iterator[Remedy]:
    if not shape.parameters:
        return
    present = shape.tensor_bytes * 8 / shape.parameters
    for label, bits in _BITS_PER_WEIGHT.items():
        if bits < present * 0.98 and attempt(recipe, _scaled(shape, bits / present)):
            size = format_bytes(round(shape.parameters * bits / 8))
            yield Remedy(f"a smaller quantisation: {label}, about {size}")
            return


def _scaled(shape: ModelShape, factor: float) -> ModelShape:
    def scaled(of: ModelShape | LayerShape, *names: str) -> dict[str, Any]:
        return {name: round(getattr(of, name) * factor) for name in names}

    sizes = "weight_bytes", "expert_bytes", "largest_tensor_bytes"
    layers = tuple(replace(layer, **scaled(layer, *sizes)) for layer in shape.layers)
    return replace(shape, layers=layers, **scaled(shape, "tensor_bytes", "input_bytes", "output_bytes"))


def _with_cache(recipe: Recipe, kind: CacheType) -> Recipe:
    return replace(recipe, cache_type_k=kind, cache_type_v=kind)


def _largest(low: int, high: int, fits: Callable[[int], object]) -> int | None:
    """Return the largest n in [low, high] that fits, given that all below it do; None if none does."""
    if low > high or not fits(low):
        return None
    return low + bisect_left(range(low + 1, high + 1), True, key=lambda n: not fits(n))
