"""Model files for tests: tiny complete ones, and sparse ones with the dimensions of real models."""

import random
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from cotenant.demo_model import write_demo_model
from cotenant.gguf_writer import TensorSpec, encode_header, padded
from tests.support.models.odd_models import cohere2_7b, gemma3n_e4b, gpt_oss_20b, lfm2_1b
from tests.support.models.sparse import (
    Dims,
    Metadata,
    RealShape,
    around,
    attention,
    experts,
    feed_forward,
    transformer_numbers,
    write_file,
    write_sparse,
)


def build_tiny_llama(path: Path) -> Path:
    """Write a complete llama of 4 MB that llama.cpp loads and generates from."""
    write_demo_model(path)
    return path


def build_tiny_embedder(path: Path, *, ranks: bool = False) -> Path:
    """Write a complete BERT of 64 dimensions, random weights: with mean pooling, or one that ranks."""
    n_embd, n_ff, n_ctx, n_layers = 64, 128, 512, 2
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [prefix + chr(code) for prefix in ("▁", "") for code in range(33, 127)]
    metadata: Metadata = {
        "general.architecture": "bert",
        "general.name": "Tiny embedder (random weights)",
        "general.file_type": 0,
        "bert.context_length": n_ctx,
        "bert.embedding_length": n_embd,
        "bert.block_count": n_layers,
        "bert.feed_forward_length": n_ff,
        "bert.attention.head_count": 4,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": 4 if ranks else 1,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "jina-v2-en",
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 5 + [1] * (len(tokens) - 5),
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.mask_token_id": 4,
    }
    shapes: dict[str, Dims] = {
        "token_embd.weight": (n_embd, len(tokens)),
        "token_types.weight": (n_embd, 2),
        "position_embd.weight": (n_embd, n_ctx),
        "token_embd_norm.weight": (n_embd,),
        "token_embd_norm.bias": (n_embd,),
    }
    matrices = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (n_embd, n_embd))
    matrices |= {"ffn_up": (n_embd, n_ff), "ffn_down": (n_ff, n_embd)}
    for block in (f"blk.{index}" for index in range(n_layers)):
        for name, dims in matrices.items():
            shapes |= {f"{block}.{name}.weight": dims, f"{block}.{name}.bias": dims[1:]}
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes |= {f"{block}.{name}.weight": (n_embd,), f"{block}.{name}.bias": (n_embd,)}
    if ranks:
        shapes |= {"cls.weight": (n_embd, n_embd), "cls.bias": (n_embd,)}
        shapes |= {"cls.output.weight": (n_embd, 1), "cls.output.bias": (1,)}
    specs = [TensorSpec(name, dims, "F32") for name, dims in shapes.items()]
    rng = random.Random(7)
    with path.open("wb") as file:
        file.write(encode_header(metadata, specs))
        for spec in specs:
            count = spec.n_bytes // 4
            is_norm = "norm.weight" in spec.name
            values = [1.0] * count if is_norm else [rng.gauss(0, 0.1) for _ in range(count)]
            file.write(struct.pack(f"<{count}f", *values).ljust(padded(spec.n_bytes), b"\0"))
    return path


def llama_8b(path: Path, quant: str = "Q4_K_M") -> Path:
    """Llama 3.1 8B."""
    shape = llama("Llama 3.1 8B", n_embd=4096, n_layers=32, n_ff=14336, n_head=32, n_head_kv=8)
    return write_sparse(path, shape, quant)


def llama_70b(path: Path, quant: str = "Q4_K_M", parts: int = 1) -> Path:
    """Llama 3.1 70B."""
    return write_sparse(path, LLAMA_70B, quant, parts)


def llama_3b_tied(path: Path, quant: str = "Q4_K_M") -> Path:
    """Llama 3.2 3B: the output matrix is the token embedding."""
    shape = llama("Llama 3.2 3B", n_embd=3072, n_layers=28, n_ff=8192, n_head=24, n_head_kv=8, tied=True)
    return write_sparse(path, shape, quant)


def llama(
    name: str,
    *,
    n_embd: int,
    n_layers: int,
    n_ff: int,
    n_head: int,
    n_head_kv: int,
    n_vocab: int = 128256,
    tied: bool = False,
    is_70b: bool = False,
    architecture: str = "llama",
) -> RealShape:
    """A dense llama of any size; `architecture` may be another one of the same tensors."""
    head = n_embd // n_head
    numbers = transformer_numbers(
        n_embd, n_layers, n_ff, n_head, n_head_kv, **{"rope.dimension_count": head, "context_length": 131072}
    )
    block: dict[str, Dims] = {
        **attention(n_embd, head * n_head, head * n_head_kv),
        **feed_forward(n_embd, n_ff),
    }
    if architecture == "qwen3":
        block |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
    tensors = around(n_embd, n_vocab, tied, [block] * n_layers)
    if architecture == "llama":
        tensors = {"rope_freqs.weight": (head // 2,)} | tensors
    return RealShape(architecture, name, n_vocab, numbers, tensors, is_70b)


def qwen3_30b_a3b(path: Path, quant: str = "Q4_K_M") -> Path:
    """Qwen3 30B A3B: a mixture of 128 experts."""
    n_embd, head, n_vocab = 2048, 128, 151936
    numbers = transformer_numbers(
        n_embd,
        48,
        6144,
        32,
        4,
        **{
            "context_length": 40960,
            "attention.key_length": head,
            "attention.value_length": head,
            "expert_count": 128,
            "expert_used_count": 8,
            "expert_feed_forward_length": 768,
        },
    )
    block = {
        **attention(n_embd, head * 32, head * 4),
        "attn_q_norm.weight": (head,),
        "attn_k_norm.weight": (head,),
        "ffn_norm.weight": (n_embd,),
        **experts(n_embd, 768, 128),
    }
    tensors = around(n_embd, n_vocab, False, [block] * 48)
    return write_sparse(path, RealShape("qwen3moe", "Qwen3 30B A3B", n_vocab, numbers, tensors), quant)


def gemma3_12b(path: Path, quant: str = "Q4_K_M") -> Path:
    """Gemma 3 12B: five of six blocks see a window of 1024 tokens; tied."""
    n_embd, head, n_vocab = 3840, 256, 262144
    numbers = transformer_numbers(
        n_embd,
        48,
        15360,
        16,
        8,
        **{
            "context_length": 131072,
            "attention.key_length": head,
            "attention.value_length": head,
            "attention.sliding_window": 1024,
        },
    )
    block = {
        **attention(n_embd, head * 16, head * 8),
        **feed_forward(n_embd, 15360),
        "attn_q_norm.weight": (head,),
        "attn_k_norm.weight": (head,),
        "post_attention_norm.weight": (n_embd,),
        "post_ffw_norm.weight": (n_embd,),
    }
    tensors = around(n_embd, n_vocab, True, [block] * 48)
    return write_sparse(path, RealShape("gemma3", "Gemma 3 12B", n_vocab, numbers, tensors), quant)


def deepseek_v2_lite(path: Path, quant: str = "Q4_K_M") -> Path:
    """DeepSeek V2 Lite: multi-head latent attention, one dense block before the experts."""
    return write_sparse(path, deepseek("DeepSeek V2 Lite", 2048, 27, 16, 10944, 1408, 64, 6, 2, 1, 0, 102400))


def deepseek_v3(path: Path, quant: str = "Q4_K_M") -> Path:
    """DeepSeek V3: 671B of latent attention and 256 experts."""
    shape = deepseek("DeepSeek V3", 7168, 61, 128, 18432, 2048, 256, 8, 1, 3, 1536, 129280)
    return write_sparse(path, shape, quant)


def deepseek(
    name: str,
    n_embd: int,
    n_layers: int,
    n_head: int,
    n_ff: int,
    n_ff_expert: int,
    n_expert: int,
    n_expert_used: int,
    n_shared: int,
    n_dense: int,
    q_rank: int,
    n_vocab: int,
) -> RealShape:
    """A DeepSeek V2 or V3."""
    kv_rank, rope, nope, v = 512, 64, 128, 128
    numbers = transformer_numbers(
        n_embd,
        n_layers,
        n_ff,
        n_head,
        1,
        **{
            "context_length": 163840,
            "attention.kv_lora_rank": kv_rank,
            "attention.key_length": kv_rank + rope,
            "attention.value_length": kv_rank,
            "attention.key_length_mla": nope + rope,
            "attention.value_length_mla": v,
            "rope.dimension_count": rope,
            "leading_dense_block_count": n_dense,
            "expert_count": n_expert,
            "expert_used_count": n_expert_used,
            "expert_shared_count": n_shared,
            "expert_feed_forward_length": n_ff_expert,
            "expert_weights_scale": 1.0,
        }
        | ({"attention.q_lora_rank": q_rank} if q_rank else {}),
    )
    query: dict[str, Dims] = {"attn_q.weight": (n_embd, n_head * (nope + rope))}
    if q_rank:
        query = {
            "attn_q_a.weight": (n_embd, q_rank),
            "attn_q_a_norm.weight": (q_rank,),
            "attn_q_b.weight": (q_rank, n_head * (nope + rope)),
        }
    attending: dict[str, Dims] = {
        "attn_norm.weight": (n_embd,),
        **query,
        "attn_kv_a_mqa.weight": (n_embd, kv_rank + rope),
        "attn_kv_a_norm.weight": (kv_rank,),
        "attn_k_b.weight": (nope, kv_rank, n_head),
        "attn_v_b.weight": (kv_rank, v, n_head),
        "attn_output.weight": (n_head * v, n_embd),
    }
    sparse: dict[str, Dims] = {
        "ffn_norm.weight": (n_embd,),
        **experts(n_embd, n_ff_expert, n_expert),
        **feed_forward(n_embd, n_ff_expert * n_shared, "_shexp"),
    }
    blocks = [attending | (feed_forward(n_embd, n_ff) if i < n_dense else sparse) for i in range(n_layers)]
    return RealShape("deepseek2", name, n_vocab, numbers, around(n_embd, n_vocab, False, blocks))


def qwen3next_80b(path: Path, quant: str = "Q4_K_M", *, mtp: bool = False) -> Path:
    """Qwen3 Next 80B A3B: three blocks of four are recurrent; `mtp` adds a next-token-prediction block."""
    n_embd, head, n_vocab, n_layers = 2048, 256, 151936, 48
    inner, state, groups, ranks = 4096, 128, 16, 32
    numbers = transformer_numbers(
        n_embd,
        n_layers + mtp,
        5120,
        16,
        2,
        **{
            "context_length": 262144,
            "attention.key_length": head,
            "attention.value_length": head,
            "expert_count": 512,
            "expert_used_count": 10,
            "expert_feed_forward_length": 512,
            "expert_shared_feed_forward_length": 512,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": inner,
            "ssm.state_size": state,
            "ssm.group_count": groups,
            "ssm.time_step_rank": ranks,
        }
        | ({"nextn_predict_layers": 1} if mtp else {}),
    )
    mixing: dict[str, Dims] = {
        "post_attention_norm.weight": (n_embd,),
        **experts(n_embd, 512, 512),
        "ffn_gate_inp_shexp.weight": (n_embd,),
        **{key: dims for key, dims in feed_forward(n_embd, 512, "_shexp").items() if "norm" not in key},
    }
    attending = attention(n_embd, head * 16, head * 2) | {
        "attn_q.weight": (n_embd, head * 16 * 2),
        "attn_q_norm.weight": (head,),
        "attn_k_norm.weight": (head,),
    }
    recurrent: dict[str, Dims] = {
        "attn_norm.weight": (n_embd,),
        "attn_qkv.weight": (n_embd, 2 * state * groups + inner),
        "attn_gate.weight": (n_embd, inner),
        "ssm_conv1d.weight": (4, 2 * state * groups + inner),
        "ssm_dt.bias": (ranks,),
        "ssm_a": (ranks,),
        "ssm_ba.weight": (n_embd, 2 * ranks),
        "ssm_norm.weight": (state,),
        "ssm_out.weight": (inner, n_embd),
    }
    blocks = [mixing | (recurrent if (i + 1) % 4 else attending) for i in range(n_layers)]
    if mtp:
        ends = ("enorm", "hnorm", "shared_head_norm")
        predicting: dict[str, Dims] = {f"nextn.{end}.weight": (n_embd,) for end in ends}
        blocks.append(mixing | attending | predicting | {"nextn.eh_proj.weight": (2 * n_embd, n_embd)})
    tensors = around(n_embd, n_vocab, False, blocks)
    return write_sparse(path, RealShape("qwen3next", "Qwen3 Next 80B A3B", n_vocab, numbers, tensors), quant)


def mamba_2_8b(path: Path, quant: str = "Q4_K_M") -> Path:
    """Mamba 2.8B: no attention at all; tied."""
    n_embd, inner, state, rank, n_vocab = 2560, 5120, 16, 160, 50280
    numbers: Metadata = {
        "context_length": 1048576,
        "embedding_length": n_embd,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "block_count": 64,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    block: dict[str, Dims] = {
        "attn_norm.weight": (n_embd,),
        "ssm_in.weight": (n_embd, 2 * inner),
        "ssm_conv1d.weight": (4, inner),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (inner, rank + 2 * state),
        "ssm_dt.weight": (rank, inner),
        "ssm_dt.bias": (inner,),
        "ssm_a": (state, inner),
        "ssm_d": (inner,),
        "ssm_out.weight": (inner, n_embd),
    }
    tensors = around(n_embd, n_vocab, True, [block] * 64)
    return write_sparse(path, RealShape("mamba", "Mamba 2.8B", n_vocab, numbers, tensors), quant)


def projector(path: Path) -> Path:
    """The header of a vision projector (mmproj), two blocks of it."""
    width = 1152
    metadata: Metadata = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": "Vision projector",
        "general.file_type": 1,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "gemma3",
        "clip.vision.image_size": 896,
        "clip.vision.patch_size": 14,
        "clip.vision.embedding_length": width,
        "clip.vision.block_count": 2,
    }
    specs = [TensorSpec("v.patch_embd.weight", (14, 14, 3, width), "F16")]
    for block in range(2):
        specs += [
            TensorSpec(f"v.blk.{block}.attn_{part}.weight", (width, width), "F16")
            for part in ("q", "k", "v", "out")
        ]
    specs.append(TensorSpec("mm.input_projection.weight", (width, 2560), "F16"))
    return write_file(path, metadata, specs)


LLAMA_70B = llama("Llama 3.1 70B", n_embd=8192, n_layers=80, n_ff=28672, n_head=64, n_head_kv=8, is_70b=True)

REAL_SHAPES: Mapping[str, Callable[[Path], Path]] = {
    "llama-8b": llama_8b,
    "llama-70b": llama_70b,
    "llama-3b-tied": llama_3b_tied,
    "qwen3-30b-a3b": qwen3_30b_a3b,
    "gemma3-12b": gemma3_12b,
    "deepseek-v2-lite": deepseek_v2_lite,
    "deepseek-v3": deepseek_v3,
    "qwen3next-80b": qwen3next_80b,
    "mamba-2.8b": mamba_2_8b,
    "gpt-oss-20b": gpt_oss_20b,
    "lfm2-1b": lfm2_1b,
    "gemma3n-e4b": gemma3n_e4b,
    "cohere2-7b": cohere2_7b,
    "qwen3next-80b-mtp": partial(qwen3next_80b, mtp=True),
}
"""Sparse models by the names of `engine_truth`."""
