"""Sparse models whose memory follows rules of their own."""

from pathlib import Path

from tests.support.models.sparse import (
    Dims,
    RealShape,
    around,
    attention,
    experts,
    feed_forward,
    transformer_numbers,
    write_sparse,
)


def gpt_oss_20b(path: Path) -> Path:
    """GPT-OSS 20B (quantised afresh): every other block slides, experts have biases."""
    n_embd, head, n_vocab, n_ff, n_expert = 2880, 64, 201088, 2880, 32
    numbers = transformer_numbers(
        n_embd,
        24,
        n_ff,
        64,
        8,
        **{
            "context_length": 131072,
            "attention.key_length": head,
            "attention.value_length": head,
            "attention.sliding_window": 128,
            "rope.dimension_count": head,
            "expert_count": n_expert,
            "expert_used_count": 4,
            "expert_feed_forward_length": n_ff,
        },
    )
    block: dict[str, Dims] = {
        **attention(n_embd, head * 64, head * 8),
        **experts(n_embd, n_ff, n_expert),
        "post_attention_norm.weight": (n_embd,),
        "attn_sinks.weight": (64,),
        "attn_q.bias": (head * 64,),
        "attn_k.bias": (head * 8,),
        "attn_v.bias": (head * 8,),
        "attn_output.bias": (n_embd,),
        "ffn_gate_inp.bias": (n_expert,),
        "ffn_gate_exps.bias": (n_ff, n_expert),
        "ffn_up_exps.bias": (n_ff, n_expert),
        "ffn_down_exps.bias": (n_embd, n_expert),
    }
    tensors = around(n_embd, n_vocab, False, [block] * 24)
    return write_sparse(path, RealShape("gpt-oss", "GPT-OSS 20B", n_vocab, numbers, tensors))


def lfm2_1b(path: Path) -> Path:
    """LFM2 1.2B: short convolutions, and attention where `head_count_kv` is not 0; tied."""
    n_embd, n_vocab, n_ff, attending = 2048, 65536, 8192, (2, 5, 8, 10, 12, 14)
    numbers = transformer_numbers(
        n_embd, 16, n_ff, 32, 0, **{"context_length": 128000, "shortconv.l_cache": 3}
    ) | {"attention.head_count_kv": [8 if index in attending else 0 for index in range(16)]}
    remembering: dict[str, Dims] = {
        **attention(n_embd, n_embd, 64 * 8),
        "attn_q_norm.weight": (64,),
        "attn_k_norm.weight": (64,),
    }
    convolving: dict[str, Dims] = {
        "attn_norm.weight": (n_embd,),
        "shortconv.conv.weight": (3, n_embd),
        "shortconv.in_proj.weight": (n_embd, 3 * n_embd),
        "shortconv.out_proj.weight": (n_embd, n_embd),
    }
    blocks = [
        feed_forward(n_embd, n_ff) | (remembering if index in attending else convolving)
        for index in range(16)
    ]
    tensors = around(n_embd, n_vocab, True, blocks)
    tensors["token_embd_norm.weight"] = tensors.pop("output_norm.weight")
    return write_sparse(path, RealShape("lfm2", "LFM2 1.2B", n_vocab, numbers, tensors))


def gemma3n_e4b(path: Path) -> Path:
    """Gemma 3n E4B: blocks from the 20th on reuse earlier caches; a second embedding per block; tied."""
    n_embd, head, n_vocab, n_ff, n_layers, side = 2048, 256, 262144, 16384, 35, 256
    numbers = transformer_numbers(
        n_embd,
        n_layers,
        n_ff,
        8,
        2,
        **{
            "context_length": 32768,
            "attention.key_length": head,
            "attention.value_length": head,
            "attention.sliding_window": 512,
            "embedding_length_per_layer_input": side,
            "altup.num_inputs": 4,
        },
    )
    block: dict[str, Dims] = {
        **attention(n_embd, head * 8, head * 2),
        **feed_forward(n_embd, n_ff),
        "attn_q_norm.weight": (head,),
        "attn_k_norm.weight": (head,),
        "post_attention_norm.weight": (n_embd,),
        "post_ffw_norm.weight": (n_embd,),
        "inp_gate.weight": (n_embd, side),
        "proj.weight": (side, n_embd),
        "post_norm.weight": (n_embd,),
        "altup_correct_coef.weight": (4, 4),
        "altup_correct_scale.weight": (n_embd,),
        "altup_predict_coef.weight": (4, 16),
        "altup_router.weight": (n_embd, 4),
        "altup_router_norm.weight": (n_embd,),
        "laurel_l.weight": (n_embd, 64),
        "laurel_r.weight": (64, n_embd),
        "laurel_post_norm.weight": (n_embd,),
    }
    tensors = around(n_embd, n_vocab, True, [block] * n_layers) | {
        "altup_proj.weight": (n_embd, n_embd, 3),
        "altup_unembd_proj.weight": (n_embd, n_embd, 3),
        "per_layer_token_embd.weight": (side * n_layers, n_vocab),
        "per_layer_model_proj.weight": (n_embd, side * n_layers),
        "per_layer_proj_norm.weight": (side,),
    }
    return write_sparse(path, RealShape("gemma3n", "Gemma 3n E4B", n_vocab, numbers, tensors))


def cohere2_7b(path: Path) -> Path:
    """Command R7B: three of four blocks slide, without a norm of their own for the FFN; tied."""
    n_embd, n_vocab = 4096, 256000
    numbers = transformer_numbers(
        n_embd,
        32,
        14336,
        32,
        8,
        **{
            "context_length": 8192,
            "attention.key_length": 128,
            "attention.value_length": 128,
            "attention.sliding_window": 4096,
            "attention.layer_norm_epsilon": 1e-5,
            "logit_scale": 0.25,
            "rope.dimension_count": 128,
        },
    )
    block = {**attention(n_embd, 4096, 1024), **feed_forward(n_embd, 14336)}
    del block["ffn_norm.weight"]
    tensors = around(n_embd, n_vocab, True, [block] * 32)
    return write_sparse(path, RealShape("cohere2", "Command R7B", n_vocab, numbers, tensors))
