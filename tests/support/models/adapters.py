"""LoRA adapters and control vectors for the tiny llama, with random weights, which llama.cpp loads."""

import random
import struct
from collections.abc import Iterable
from pathlib import Path

from cotenant.demo_model import N_EMBD, N_FF, N_HEAD, N_HEAD_KV, N_LAYERS
from cotenant.gguf_writer import TensorSpec, encode_header, padded
from tests.support.models.sparse import Metadata

_N_KV = N_EMBD // N_HEAD * N_HEAD_KV
_MATRICES = {
    "attn_q": (N_EMBD, N_EMBD),
    "attn_v": (N_EMBD, _N_KV),
    "ffn_up": (N_EMBD, N_FF),
    "ffn_down": (N_FF, N_EMBD),
}
LORA: Metadata = {
    "general.architecture": "llama",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 16.0,
}


def build_tiny_lora(path: Path, *, rank: int = 8, seed: int = 1, blocks: int = N_LAYERS) -> Path:
    """Write an adapter of the tiny llama that changes its answers a lot."""
    specs = []
    for index in range(blocks):
        for name, (n_in, n_out) in _MATRICES.items():
            base = f"blk.{index}.{name}.weight"
            specs.append(TensorSpec(f"{base}.lora_a", (n_in, rank), "F32"))
            specs.append(TensorSpec(f"{base}.lora_b", (rank, n_out), "F32"))
    return _write(path, LORA, specs, seed, 0.3)


def build_tiny_control_vector(path: Path, *, seed: int = 1, n_embd: int = N_EMBD) -> Path:
    """Write a control vector for all blocks but the first."""
    specs = [TensorSpec(f"direction.{index}", (n_embd,), "F32") for index in range(1, N_LAYERS)]
    return _write(path, {"general.architecture": "controlvector"}, specs, seed, 4.0)


def _write(path: Path, metadata: Metadata, specs: Iterable[TensorSpec], seed: int, deviation: float) -> Path:
    rng, specs = random.Random(seed), list(specs)
    with path.open("wb") as file:
        file.write(encode_header(metadata, specs))
        for spec in specs:
            values = [rng.gauss(0, deviation) for _ in range(spec.n_bytes // 4)]
            file.write(struct.pack(f"<{len(values)}f", *values).ljust(padded(spec.n_bytes), b"\0"))
    return path
