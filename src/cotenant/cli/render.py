"""Plans as text."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from cotenant.analysis.calibration import Comparison
from cotenant.domain.devices import Device, DeviceOrder, Inventory
from cotenant.domain.engines import Companions
from cotenant.domain.models import ModelShape, Parts, Projector, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal, Share
from cotenant.domain.units import MIB, format_bytes, format_mib, printable

_BAR = 40
_FILLS = {"weights": "█", "kv": "▓", "compute": "▒", "overhead": "░", "in use": "×", "free": "·"}
_ORDERS = {
    DeviceOrder.FREE_DESC: "by free memory, the emptiest first",
    DeviceOrder.TOTAL_DESC: "by total memory, the largest first",
    DeviceOrder.INDEX: "by index",
}


def analysis_lines(path: object, shape: ModelShape) -> Iterator[str]:
    """Describe what a model file holds."""
    sizes = [layer.weight_bytes for layer in shape.layers if not layer.skipped]
    yield f"Model: {printable(str(path))}"
    facts = [shape.name, shape.architecture, shape.quantisation or "quantisation unknown"]
    yield f"  {' · '.join(facts)} · {_count(shape.parameters)} parameters"
    weights, file = format_bytes(shape.tensor_bytes), format_bytes(shape.file_bytes)
    yield f"  Total size: {weights} of weights in {file} of file"
    yield f"  Layers: {shape.n_layers}" + (
        f", of which {shape.n_layers - len(sizes)} not loaded" if len(sizes) < shape.n_layers else ""
    )
    if sizes:
        yield f"  Avg layer size: {sum(sizes) / len(sizes) / MIB:,.2f} MiB"
        yield f"  Layer size range: {min(sizes) / MIB:,.2f} - {max(sizes) / MIB:,.2f} MiB"
    tied = ", a second copy of the embedding" if shape.tied else ""
    yield f"  Embedding: {format_bytes(shape.input_bytes)}, in host RAM"
    yield f"  Output: {format_bytes(shape.output_bytes)}{tied}, on the last GPU used"
    if shape.n_expert:
        size = sum(layer.expert_bytes for layer in shape.layers)
        blocks = sum(layer.expert_bytes > 0 for layer in shape.layers)
        yield (
            f"  Experts: {shape.n_expert_used} of {shape.n_expert} per token, {format_bytes(size)} "
            f"in {blocks} layers"
        )
    trained = f"{shape.n_ctx_train:,} tokens" if shape.n_ctx_train else "unknown"
    sliding = sum(layer.attention == "sliding" for layer in shape.layers)
    window = f", window of {shape.sliding_window:,} in {sliding} layers" if sliding else ""
    yield f"  Trained context: {trained}   Attention: {_attention(shape)}{window}"
    yield f"  Kind: {shape.kind}   Chat template: {'yes' if shape.chat_template else 'no'}"


def recipe_line(
    recipe: Recipe, path: Path | None, projector: Projector | None, companions: Companions
) -> str:
    """Describe how a model will run, with which projector and which other files."""
    slots = "1 slot" if recipe.parallel == 1 else f"{recipe.parallel} slots"
    shared = "sharing one cache" if recipe.kv_unified else "each with its own cache"
    return (
        f"Recipe: {recipe.n_ctx:,} tokens for {slots}{f' {shared}' if recipe.parallel > 1 else ''}, "
        f"KV {recipe.cache_type_k}/{recipe.cache_type_v}, flash attention {recipe.flash_attention}, "
        f"ubatch {recipe.n_ubatch}, split policy {recipe.split_policy}"
    ) + "".join(
        (
            f", projector {path.name} ({format_bytes(projector.weights)})" if path and projector else "",
            f", draft {Path(companions.draft).name}" if companions.draft else "",
            *(f", adapter {Path(each.path).name} × {each.scale:g}" for each in companions.adapters),
        )
    )


def unified_lines(devices: Sequence[Device]) -> Iterator[str]:
    """Say of each GPU that shares host RAM what that means."""
    for device in devices:
        if device.unified:
            kept = format_mib(device.system_bytes)
            yield f"{device.label} shares host RAM: one pool; at least {kept} MiB stay with the system"


def device_lines(inventory: Inventory, budgets: Sequence[Budget], order: DeviceOrder) -> Iterator[str]:
    """List the devices in planned order, with what is free and what may be planned."""
    yield f"Devices {_ORDERS[order]}:"
    for budget in budgets:
        free, total = format_mib(budget.free_bytes), format_mib(budget.device.total_bytes)
        use = (
            f"left out: {budget.left_out}" if budget.left_out else f"budget {format_mib(budget.budget_bytes)}"
        )
        yield f"  {budget.device.label:<44} {free:>8} / {total:>8} MiB free, {use}"
    yield from (f"  {line}" for line in unified_lines(inventory.devices))
    for problem in inventory.problems:
        yield f"  Problem: {problem}"


def result_lines(result: Placement | Refusal) -> Iterator[str]:
    """Draw the plan, or say why there is none; then list the warnings."""
    yield from placement_lines(result) if isinstance(result, Placement) else refusal_lines(result)
    for warning in result.warnings:
        yield f"Warning: {warning}"


def placement_lines(placement: Placement) -> Iterator[str]:
    """Draw the layer-to-device plan: a line, a bar and the parts per device."""
    yield "LAYER-TO-GPU ALLOCATION PLAN" if placement.on_gpu else "ALLOCATION PLAN"
    for share in placement.shares:
        yield from _share_lines(share, "left to llama.cpp, at most" if placement.by_engine else None)
    if placement.host.total:
        on_host = placement.n_layers + 1 - placement.n_gpu_layers
        layers = f"{on_host} layers" if placement.n_gpu_layers and on_host else "input layer"
        what = "whole model" if not placement.n_gpu_layers else layers
        if experts := placement.recipe.n_cpu_moe:
            what += f" and the experts of {experts} layers"
        yield f"  Host RAM: {what} | {format_mib(placement.host.total)} MiB ({_parts(placement.host)})"
    yield "  " + "  ".join(f"{fill} {name}" for name, fill in _FILLS.items())
    if placement.estimated:
        yield f"  estimated, not exact: {', '.join(placement.estimated)}"
    if placement.n_gpu_layers and not placement.by_engine:
        counts = ",".join(map(str, placement.tensor_split))
        numbers = ", ".join(share.device.number for share in placement.shares)
        over = f"   (layers on {numbers}, in this order)" if len(placement.shares) > 1 else ""
        experts = f" --n-cpu-moe {placement.recipe.n_cpu_moe}" if placement.recipe.n_cpu_moe else ""
        yield f"TENSOR SPLIT: --tensor-split {counts} --n-gpu-layers {placement.n_gpu_layers}{experts}{over}"


def refusal_lines(refusal: Refusal) -> Iterator[str]:
    """Say what does not fit, where and by how much, and what would fit."""
    yield f"DOES NOT FIT: {refusal.reason}"
    for shortfall in refusal.shortfalls:
        missing = (
            f"{format_bytes(shortfall.missing_bytes)} short" if shortfall.missing_bytes else "holds its part"
        )
        yield (
            f"  {shortfall.device.label}: needs {format_bytes(shortfall.needed_bytes)} of "
            f"{format_bytes(shortfall.budget_bytes)}, {missing}"
        )
    if refusal.remedies:
        yield "Any one of these would fit:"
        for remedy in refusal.remedies:
            yield f"  - {remedy.text}" + (f"   {remedy.flags}" if remedy.flags else "")
    elif refusal.shortfalls:
        yield "Nothing that could be computed would fit on these devices."


def comparison_lines(rows: Sequence[Comparison], title: str) -> Iterator[str]:
    """Compare planned bytes with the engine's, part by part, in MiB."""
    yield f"{title} (MiB):"
    yield f"  {'':<34}{'weights':>19}{'KV':>19}{'compute':>19}{'difference':>12}"
    for row in rows:
        label = row.device.label if row.device else "host RAM"
        if row.reported is None or row.error_bytes is None:
            yield f"  {label:<34}{'not reported':>19}"
            continue
        planned, seen = asdict(row.planned), asdict(row.reported)
        parts = ("weights", "kv", "compute")
        cells = "".join(f"{f'{_mib(planned[part])} / {_mib(seen[part])}':>19}" for part in parts)
        yield f"  {label:<34}{cells}{row.error_bytes / MIB:>+12,.1f}"


def _share_lines(share: Share, layers: str | None) -> Iterator[str]:
    budget = share.budget
    free = budget.free_bytes
    if not share.used:
        yield f"  {budget.device.label}: not used"
        return
    if share.first is None or share.last is None:
        layers = layers or "output layer"
    elif layers is None:
        count = share.last - share.first + 1
        layers = f"{count} layer{'s' if count > 1 else ''} (#{share.first}-{share.last})"
        layers += " + output" if share.has_output else ""
    percent = f" ({100 * share.parts.total / free:.1f}%)" if free else ""
    yield (
        f"  {budget.device.label}: {layers} | "
        f"{format_mib(share.parts.total)} / {format_mib(free)} MiB{percent}"
    )
    yield f"    {_bar(share)}  {_parts(share.parts)}"


def _bar(share: Share) -> str:
    total, free = share.device.total_bytes, share.budget.free_bytes
    capacity = total or free or share.parts.total or 1
    amounts = {"in use": max(0, capacity - free) if free is not None else 0, **asdict(share.parts)}
    cells, drawn, upto = "", 0, 0
    for name, amount in amounts.items():
        upto += amount
        width = min(_BAR, round(_BAR * upto / capacity)) - drawn
        cells += _FILLS[name] * width
        drawn += width
    return f"[{cells}{_FILLS['free'] * (_BAR - drawn)}]"


def _parts(parts: Parts) -> str:
    named = {"KV" if name == "kv" else name: count for name, count in asdict(parts).items() if count}
    return ", ".join(f"{name} {_mib(count)}" for name, count in named.items())


def _mib(count: int) -> str:
    return f"{count / MIB:,.0f}" if count >= 100 * MIB else f"{count / MIB:,.2f}"


def _attention(shape: ModelShape) -> str:
    kinds: Counter[str] = Counter()
    for layer in shape.layers:
        name = str(layer.attention)
        if layer.state_elements:
            name = "recurrent" if not layer.k_elements else f"{name} + recurrent"
        kinds[name] += 1
    if len(kinds) == 1:
        return next(iter(kinds))
    return ", ".join(f"{count} {name}" for name, count in kinds.items())


def _count(number: int) -> str:
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return str(number)
