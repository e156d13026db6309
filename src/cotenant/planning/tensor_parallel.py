"""vLLM's models: whole on one GPU, or every matrix split equally over 2, 4 or 8 equal ones.

Sources, vLLM 0.10.2 to 0.32. `request_memory` (`v1/worker/utils.py`): `--gpu-memory-utilization` times the
card's total must be free once the CUDA context and NCCL are up, whatever the other arguments.
`Worker.determine_available_memory` (`v1/worker/gpu_worker.py`): with `--kv-cache-memory-bytes` the KV cache
has that size. Without it, it is that share minus weights, peak activations and all that other processes took
of the card meanwhile, since vLLM compares free memory; it stops if another process freed memory. CUDA graphs
come on top, or since 0.20 out of the share unless disabled. `_check_enough_kv_cache_memory`
(`v1/core/kv_cache_utils.py`): the cache holds one request of the longest length and a block that stays empty.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from cotenant.domain.devices import DeviceKind
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.models import AttentionKind, CacheType, ModelKind, ModelShape, Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal, Share, Shortfall
from cotenant.domain.units import MIB, format_bytes
from cotenant.planning.budgets import BudgetRules, left_out_warnings, overhead_bytes
from cotenant.planning.single_device import lay_out_whole

WAYS: Final = (1, 2, 4, 8)
GRAPH_BYTES: Final = 512 * MIB
"""CUDA graphs and NCCL's buffers, which vLLM takes on top of its utilization; an estimate."""
PROCESS_BYTES: Final = 2304 * MIB
"""Host RAM of server, engine core and worker on the CPU: 0.7 GiB each without weights (0.32, as measured)."""
_ACTIVATION_MARGIN_BYTES: Final = 256 * MIB
_BLOCK_TOKENS: Final = 128
"""The largest block of attention's backends: 16 to 64 tokens on a card, 128 on the CPU."""
_NULL_BLOCKS: Final = 1
_F16: Final = 2
_F32: Final = 4


def place_tensor_parallel(
    name: str, shape: ModelShape, recipe: Recipe, budgets: Sequence[Budget], rules: BudgetRules
) -> Placement | Refusal:
    """Place a model on the fewest equal GPUs that have room for it, or return why none have.

    Host RAM is used only if it is the only device, for builds of vLLM without CUDA.
    """
    left_out = left_out_warnings(budgets)
    usable = [budget for budget in budgets if budget.left_out is None]
    tried: list[tuple[Shortfall, ...]] = []
    for group in _groups(usable, shape):
        parts = parts_per_gpu(shape, recipe, len(group))
        needed = [replace(parts, overhead=_overhead(budget, rules, recipe.engine)) for budget in group]
        fitted = [*zip(group, needed, strict=True)]
        tried.append(tuple(Shortfall(b.device, part.total, b.budget_bytes) for b, part in fitted))
        if not any(shortfall.missing_bytes for shortfall in tried[-1]):
            by_device = {budget.device.id: part for budget, part in fitted}
            estimated = ("compute",) if _cache_known(shape) else ("kv", "compute")
            warnings = (*left_out, *shape.notes)
            return lay_out_whole(name, shape, recipe, budgets, by_device, estimated, warnings)
    if not tried:
        reason = "no device can be used" if budgets else "there is no device"
        return Refusal(name, reason, warnings=left_out)
    shortfalls = min(tried, key=lambda group: sum(shortfall.missing_bytes for shortfall in group))
    worst = max(shortfalls, key=lambda shortfall: shortfall.missing_bytes)
    where = f"each of {len(shortfalls)} GPUs" if len(shortfalls) > 1 else worst.device.label
    reason = (
        f"it needs {format_bytes(worst.needed_bytes)} of {where} and "
        f"{format_bytes(worst.budget_bytes)} may be used"
    )
    return Refusal(name, reason, shortfalls, warnings=left_out)


def parts_per_gpu(shape: ModelShape, recipe: Recipe, ways: int) -> Parts:
    """Return what each of `ways` GPUs holds, without context and graphs.

    All matrices are split, so weights divide evenly; if there are fewer KV heads than ways, several GPUs keep
    the same head. vLLM keeps the KV cache of sliding layers in pages of the others' size: they count in full.
    """
    tokens = (-(-recipe.n_ctx // _BLOCK_TOKENS) + _NULL_BLOCKS) * _BLOCK_TOKENS
    element = 1 if recipe.cache_type_k is CacheType.Q8_0 else _F16
    row = sum(_elements(shape, number, ways) for number in range(shape.n_layers))
    state = sum(layer.state_elements for layer in shape.layers) * _F32 * recipe.parallel
    widest = max((layer.n_ff for layer in shape.layers), default=0)
    hidden = batch_tokens(recipe, shape.kind) * (4 * shape.n_embd + 3 * -(-widest // ways)) * _F16
    logits = 2 * _F32 * recipe.parallel * shape.n_vocab
    return Parts(
        weights=-(-shape.tensor_bytes // ways),
        kv=tokens * row * element + -(-state // ways),
        compute=hidden + logits + _ACTIVATION_MARGIN_BYTES,
    )


def batch_tokens(recipe: Recipe, kind: ModelKind) -> int:
    """Return `--max-num-batched-tokens`.

    A model that pools processes each text in one piece: vLLM refuses to start where its longest does not fit.
    """
    return max(recipe.n_batch, recipe.parallel, recipe.n_ctx if kind.pools else 0)


def utilization(share: Share) -> float | None:
    """Return `--gpu-memory-utilization` for a share of a device, rounded up to 0.0001; None if unknown.

    It covers what is planned, without context and graphs. Other memory on the card does not count: vLLM only
    checks that this much is free when it starts, and admission ensures that. On the CPU it covers its
    processes too (`CPUWorker.determine_available_memory`).
    """
    total = share.device.total_bytes
    if not total:
        return None
    wanted = share.parts.total
    if share.device.kind is not DeviceKind.HOST:
        wanted -= share.parts.overhead
    return min(0.99, -(-wanted * 10_000 // total) / 10_000)


def _groups(usable: Sequence[Budget], shape: ModelShape) -> Iterator[list[Budget]]:
    """Yield the sets of devices to try: the fewest first, of equal ones that a process can use together."""
    gpus = [budget for budget in usable if budget.device.kind is not DeviceKind.HOST]
    if not gpus:
        yield from ([budget] for budget in usable)
        return
    alike: dict[tuple[str, int | None, str | None], list[Budget]] = {}
    for budget in gpus:
        if budget.device.kind is not DeviceKind.MIG:
            key = budget.device.name, budget.device.total_bytes, budget.group
            alike.setdefault(key, []).append(budget)
    heads = [layer.n_head for layer in shape.layers if layer.n_head]
    for ways in WAYS:
        if ways == 1:
            yield from ([budget] for budget in gpus)
        elif all(count % ways == 0 for count in heads):
            for group in alike.values():
                if len(group) >= ways:
                    yield sorted(group, key=lambda budget: -budget.budget_bytes)[:ways]


def _elements(shape: ModelShape, number: int, ways: int) -> int:
    """Return the K and V elements of one token in one layer on each GPU; all keep a latent cache."""
    layer = shape.layers[number]
    if not layer.v_elements:
        return layer.k_elements
    # Of n KV heads, each GPU has at least one: no less than the width of a head.
    head = shape.n_embd // layer.n_head if layer.n_head else 1
    return max(-(-layer.k_elements // ways), min(head, layer.k_elements)) + max(
        -(-layer.v_elements // ways), min(head, layer.v_elements)
    )


def _cache_known(shape: ModelShape) -> bool:
    """Whether vLLM's KV cache is computed to the byte, so that its size can be set.

    It pads caches of unequal layers to pages of one size, by rules that change between its releases.
    """
    rows = {(layer.k_elements, layer.v_elements) for layer in shape.layers}
    alike = len(rows) == 1 and all(v > 0 for _, v in rows)
    plain = all(layer.attention is AttentionKind.FULL and not layer.state_elements for layer in shape.layers)
    return shape.kv_exact and alike and plain


def _overhead(budget: Budget, rules: BudgetRules, engine: EngineKind) -> int:
    on_host = budget.device.kind is DeviceKind.HOST
    return PROCESS_BYTES if on_host else overhead_bytes(budget.device, rules, engine) + GRAPH_BYTES
