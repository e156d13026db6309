"""A small llama model that is generated locally, to try things out without a download.

Its weights are random, so it generates meaningless syllables. Everything else is real: any llama.cpp loads
it, tokenises, applies its chat template and generates.
"""

import random
import struct
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Final

from cotenant.gguf_writer import MetadataValue, TensorSpec, encode_header, padded

N_LAYERS: Final = 4
N_EMBD: Final = 256
N_HEAD: Final = 4
N_HEAD_KV: Final = 2
N_FF: Final = 384
N_CTX_TRAIN: Final = 8192

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)

_SEED: Final = 20_24
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def write_demo_model(path: Path) -> None:
    """Write the model to `path`, the same bytes every time (4 MB). Raises OSError."""
    vocabulary = _vocabulary()
    specs = _tensors(len(vocabulary))
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        file.write(encode_header(_metadata(vocabulary), specs))
        rng = random.Random(_SEED)  # noqa: S311  weights, not secrets
        for spec in specs:
            data = _data(spec, rng, vocabulary)
            file.write(data.ljust(padded(len(data)), b"\0"))
    partial.replace(path)


def _vocabulary() -> list[tuple[str, int]]:
    """Return tokens with their kinds: special ones, every byte, and syllables alone and at a word's start."""
    syllables = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
    return [
        ("<unk>", _UNKNOWN),
        ("<s>", _CONTROL),
        ("</s>", _CONTROL),
        *((f"<0x{byte:02X}>", _BYTE) for byte in range(256)),
        *((syllable, _NORMAL) for syllable in syllables),
        *(("▁" + syllable, _NORMAL) for syllable in syllables),
    ]


def _metadata(vocabulary: Sequence[tuple[str, int]]) -> dict[str, MetadataValue]:
    return {
        "general.architecture": "llama",
        "general.name": "Cotenant demo (random weights)",
        "general.file_type": 1,
        "llama.context_length": N_CTX_TRAIN,
        "llama.embedding_length": N_EMBD,
        "llama.block_count": N_LAYERS,
        "llama.feed_forward_length": N_FF,
        "llama.attention.head_count": N_HEAD,
        "llama.attention.head_count_kv": N_HEAD_KV,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": N_EMBD // N_HEAD,
        "llama.vocab_size": len(vocabulary),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.scores": [-float(rank) for rank in range(len(vocabulary))],
        "tokenizer.ggml.token_type": [kind for _, kind in vocabulary],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _tensors(n_vocab: int) -> list[TensorSpec]:
    n_kv = N_EMBD // N_HEAD * N_HEAD_KV
    block = {
        "attn_norm": (N_EMBD,),
        "attn_q": (N_EMBD, N_EMBD),
        "attn_k": (N_EMBD, n_kv),
        "attn_v": (N_EMBD, n_kv),
        "attn_output": (N_EMBD, N_EMBD),
        "ffn_norm": (N_EMBD,),
        "ffn_gate": (N_EMBD, N_FF),
        "ffn_up": (N_EMBD, N_FF),
        "ffn_down": (N_FF, N_EMBD),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (N_EMBD, n_vocab)}
    for index in range(N_LAYERS):
        shapes |= {f"blk.{index}.{name}": dims for name, dims in block.items()}
    shapes |= {"output_norm": (N_EMBD,), "output": (N_EMBD, n_vocab)}
    return [
        TensorSpec(f"{name}.weight", dims, "F32" if len(dims) == 1 else "F16")
        for name, dims in shapes.items()
    ]


def _data(spec: TensorSpec, rng: random.Random, vocabulary: Sequence[tuple[str, int]]) -> bytes:
    if len(spec.dims) == 1:
        return struct.pack("<f", 1.0) * spec.dims[0]
    if spec.name != "output.weight":
        # Embeddings are larger than what blocks add to them: otherwise it repeats one word for ever.
        exponent = 0 if spec.name == "token_embd.weight" else -5
        return _random_halves(rng, spec.n_bytes // 2, exponent=exponent)
    # A row of zeros is never chosen, so that only syllables are generated: no bytes, no early end.
    row_bytes = spec.dims[0] * 2
    rows = (
        _random_halves(rng, spec.dims[0], exponent=-3) if kind == _NORMAL else bytes(row_bytes)
        for _, kind in vocabulary
    )
    return b"".join(rows)


def _random_halves(rng: random.Random, count: int, *, exponent: int) -> bytes:
    """Return half-precision numbers of either sign with a magnitude in [2^exponent, 2^(exponent + 1))."""
    data = bytearray(rng.randbytes(2 * count))
    keep_sign_and_mantissa = bytes(byte & 0b1000_0011 | (exponent + 15) << 2 for byte in range(256))
    data[1::2] = data[1::2].translate(keep_sign_and_mantissa)
    return bytes(data)
