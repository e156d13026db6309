"""Files with a true header, the true length and no data, for models with the dimensions of real ones.

A 70B takes some megabytes of disk. llama.cpp plans it, and even loads it, like the real one (with zeros for
weights).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cotenant.gguf_writer import MetadataValue, TensorSpec, encode_header, padded
from tests.support.models.quant_mix import QUANTS, quantise

Dims = tuple[int, ...]
Metadata = dict[str, MetadataValue]


@dataclass(frozen=True)
class RealShape:
    """A model as published: its numbers under the architecture's name, its tensors, its vocabulary."""

    architecture: str
    name: str
    n_vocab: int
    numbers: Mapping[str, MetadataValue]
    tensors: Mapping[str, Dims]
    is_70b: bool = False


def write_sparse(
    path: Path,
    shape: RealShape,
    quant: str = "Q4_K_M",
    parts: int = 1,
    more: Mapping[str, MetadataValue] | None = None,
) -> Path:
    """Write the shape under `path`, or as `parts` files beside it; return the (first) file.

    `more` is metadata to add.
    """
    specs = quantise(shape.tensors, quant, n_expert=_number(shape, "expert_count"), is_70b=shape.is_70b)
    metadata: Metadata = {
        "general.architecture": shape.architecture,
        "general.name": shape.name,
        "general.file_type": QUANTS[quant].file_type,
        **{f"{shape.architecture}.{key}": value for key, value in shape.numbers.items()},
        **vocabulary(shape.n_vocab),
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
        **(more or {}),
    }
    if parts == 1:
        return write_file(path, metadata, specs)
    per_part = -(-len(specs) // parts)
    for number in range(parts):
        split: Metadata = {
            "split.no": number,
            "split.count": parts,
            "split.tensors.count": len(specs),
        }
        share = specs[number * per_part : (number + 1) * per_part]
        write_file(part_path(path, number + 1, parts), (metadata if number == 0 else {}) | split, share)
    return part_path(path, 1, parts)


def part_path(path: Path, number: int, parts: int) -> Path:
    """Name one part of a split model."""
    return path.with_name(f"{path.stem}-{number:05}-of-{parts:05}.gguf")


def write_file(path: Path, metadata: Metadata, specs: Sequence[TensorSpec]) -> Path:
    """Write a header and nothing but length after it."""
    header = encode_header(metadata, specs)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(padded(spec.n_bytes) for spec in specs))
    return path


@lru_cache(maxsize=4)
def vocabulary(n_vocab: int) -> Metadata:
    """A SentencePiece vocabulary of the wanted size that llama.cpp accepts."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"tok{number:05x}" for number in range(n_vocab - len(tokens))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-1.0] * n_vocab,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (n_vocab - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def transformer_numbers(
    n_embd: int, n_layers: int, n_ff: int, n_head: int, n_head_kv: int, **more: MetadataValue
) -> Metadata:
    """The keys that every transformer has."""
    return {
        "embedding_length": n_embd,
        "block_count": n_layers,
        "feed_forward_length": n_ff,
        "attention.head_count": n_head,
        "attention.head_count_kv": n_head_kv,
        "attention.layer_norm_rms_epsilon": 1e-6,
        **more,
    }


def attention(n_embd: int, n_q: int, n_kv: int) -> dict[str, Dims]:
    """The tensors of plain attention."""
    return {
        "attn_norm.weight": (n_embd,),
        "attn_q.weight": (n_embd, n_q),
        "attn_k.weight": (n_embd, n_kv),
        "attn_v.weight": (n_embd, n_kv),
        "attn_output.weight": (n_q, n_embd),
    }


def feed_forward(n_embd: int, n_ff: int, suffix: str = "") -> dict[str, Dims]:
    """The tensors of a gated feed-forward network, with its norm."""
    return {
        "ffn_norm.weight": (n_embd,),
        f"ffn_gate{suffix}.weight": (n_embd, n_ff),
        f"ffn_up{suffix}.weight": (n_embd, n_ff),
        f"ffn_down{suffix}.weight": (n_ff, n_embd),
    }


def experts(n_embd: int, n_ff: int, n_expert: int) -> dict[str, Dims]:
    """The tensors of a router and its experts."""
    return {
        "ffn_gate_inp.weight": (n_embd, n_expert),
        "ffn_gate_exps.weight": (n_embd, n_ff, n_expert),
        "ffn_up_exps.weight": (n_embd, n_ff, n_expert),
        "ffn_down_exps.weight": (n_ff, n_embd, n_expert),
    }


def around(n_embd: int, n_vocab: int, tied: bool, blocks: Sequence[Mapping[str, Dims]]) -> dict[str, Dims]:
    """Name the blocks' tensors and add what is before and after them."""
    tensors: dict[str, Dims] = {"token_embd.weight": (n_embd, n_vocab)}
    for index, block in enumerate(blocks):
        tensors |= {f"blk.{index}.{name}": dims for name, dims in block.items()}
    tensors["output_norm.weight"] = (n_embd,)
    return tensors if tied else tensors | {"output.weight": (n_embd, n_vocab)}


def _number(shape: RealShape, key: str) -> int:
    value = shape.numbers.get(key, 0)
    return value if isinstance(value, int) else 0
