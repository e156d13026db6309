"""Manual splits, and llama.cpp's rule that converts a split to layers."""

import math
import struct
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from cotenant.domain.errors import BadSplit

_SUM_TOLERANCE: Final = 0.02


def parse_split(text: str) -> tuple[float, ...]:
    """Read `0.35,0.45,0.20` or `12,12,9`. Raises BadSplit."""
    values = []
    for word in text.split(","):
        try:
            value = float(word)
        except ValueError:
            raise BadSplit(f"--tensor-split {text!r}: {word.strip()!r} is not a number", hint=_HINT) from None
        if not math.isfinite(value) or value < 0:
            raise BadSplit(f"--tensor-split {text!r}: {word.strip()!r} is not a share", hint=_HINT)
        values.append(value)
    if not any(values):
        raise BadSplit(f"--tensor-split {text!r} gives no device anything", hint=_HINT)
    return tuple(values)


_HINT: Final = (
    "Give one entry per device, in planned order: proportions that sum to 1 (0.75,0.25) "
    "or layer counts that sum to the layers on GPUs, the output layer being one (25,8)."
)


def manual_counts(values: Sequence[float], n_devices: int, n_gpu_layers: int) -> tuple[int, ...]:
    """Return the layer counts of a manual split.

    Whole numbers are counts and must sum to `n_gpu_layers`; other numbers are proportions, must sum to 1
    within 0.02, and are converted as llama.cpp does. Raises BadSplit.
    """
    given = ",".join(f"{value:g}" for value in values)
    if len(values) != n_devices:
        raise BadSplit(
            f"--tensor-split {given} has {len(values)} entries for {n_devices} devices", hint=_HINT
        )
    total = sum(values)
    if all(value == int(value) for value in values) and (total != 1 or n_gpu_layers == 1):
        if total != n_gpu_layers:
            raise BadSplit(
                f"--tensor-split {given} sums to {total:g} layers, not to the {n_gpu_layers} on GPUs",
                hint=_HINT,
            )
        return tuple(int(value) for value in values)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise BadSplit(f"--tensor-split {given} sums to {total:g}, not to 1", hint=_HINT)
    return llama_counts(values, n_gpu_layers)


def llama_counts(values: Sequence[float], n_gpu_layers: int) -> tuple[int, ...]:
    """Return how many layers llama.cpp puts on each device for a tensor split.

    `src/llama-model.cpp`, load_tensors: float32 running sums, divided by the total; layer i of n goes to the
    first device whose sum exceeds float32(i / n).
    """
    sums: list[float] = []
    running = 0.0
    for value in values:
        running = _f32(running + _f32(value))
        sums.append(running)
    bounds = [_f32(value / sums[-1]) for value in sums]
    counts = [0] * len(values)
    for layer in range(n_gpu_layers):
        device = bisect_right(bounds, _f32(_f32(layer) / _f32(n_gpu_layers)))
        counts[min(device, len(counts) - 1)] += 1
    return tuple(counts)


def _f32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])
