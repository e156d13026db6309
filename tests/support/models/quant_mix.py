"""Which type each tensor gets in a quantised file, by the rules of llama.cpp's `llama-quant.cpp`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cotenant.analysis.ggml_types import GGML_TYPES
from cotenant.gguf_writer import TYPE_IDS, TensorSpec


@dataclass(frozen=True)
class Quant:
    """A file type: its number, the usual type of a matrix, and the one of matrices that get more bits."""

    file_type: int
    usual: str
    more: str


QUANTS = {
    "Q4_K_M": Quant(15, "Q4_K", "Q6_K"),
    "Q5_K_M": Quant(17, "Q5_K", "Q6_K"),
    "Q6_K": Quant(18, "Q6_K", "Q6_K"),
    "Q8_0": Quant(7, "Q8_0", "Q8_0"),
    "F16": Quant(1, "F16", "F16"),
}
_KEPT = re.compile(
    r"norm\.weight|ffn_gate_inp\.weight|ssm_conv1d|shortconv\.conv|altup|laurel|per_layer_model_proj|\.bias$"
)
_VALUES = re.compile(r"attn_v\.weight|attn_qkv\.weight|attn_kv_b\.weight")
_DOWN = re.compile(r"ffn_down(?:_exps|_shexp)?\.weight")
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def quantise(
    tensors: Mapping[str, tuple[int, ...]], quant: str, *, n_expert: int = 0, is_70b: bool = False
) -> list[TensorSpec]:
    """Choose the types: the output, and V and down projections of some blocks, get more bits."""
    mix = QUANTS[quant]
    tied = "output.weight" not in tensors
    values = [name for name in tensors if _VALUES.search(name)]
    downs = [name for name in tensors if _DOWN.search(name)]
    favoured = {name for index, name in enumerate(values) if _more_bits(index, len(values))}
    for index, name in enumerate(downs):
        block = int(name.split(".")[1]) if n_expert > 1 else index
        if _more_bits(block, len(downs)):
            favoured.add(name)
    specs = []
    for name, dims in tensors.items():
        kind = mix.more if name in favoured else mix.usual
        if name == "output.weight" or (tied and name == "token_embd.weight"):
            kind = "Q6_K" if kind.endswith("_K") else kind
        elif is_70b and name in values and kind == "Q4_K":
            kind = "Q5_K"
        if len(dims) == 1 or _KEPT.search(name) or name.endswith("ssm_a"):
            kind = "F32"
        elif dims[0] % GGML_TYPES[TYPE_IDS[kind]].block_elements:
            kind = _FALLBACK.get(kind, "F16")
        specs.append(TensorSpec(name, dims, kind))
    return specs


def _more_bits(index: int, count: int) -> bool:
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2
