"""What llama.cpp says of models with a draft, to compare with.

As in `expert_truth`, of the two tables that are printed for a model with a draft:

    llama-server -m MODEL --rpc SERVERS -md DRAFT --spec-type draft-simple --spec-draft-ngl 999 \\
        --spec-draft-device RPC0 -c CONTEXT -np SLOTS -kvu -ub 512 -fa on -lv 5 -nr -ngl LAYERS \\
        -ts SPLIT -ncmoe EXPERTS

The pairs are of vocabularies that do not match, which the tables do not depend on.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """One load: whole MiB of weights and KV, by device and of the draft, and of weights in host RAM."""

    model: str
    draft: str
    parallel: int
    kv_unified: bool
    n_ctx: int
    n_cpu_moe: int
    tensor_split: tuple[int, ...]
    devices: tuple[tuple[int, int], ...]
    host_weights: int
    draft_device: tuple[int, int]
    draft_host_weights: int


DRAFT_TRUTH = (
    Told("llama-8b", "llama-3b-tied", 4, True, 32768, 0, (33,), ((4403, 4096),), 281, (1918, 3584), 308),
    Told("llama-8b", "llama-3b-tied", 3, False, 10000, 0, (33,), ((4403, 1344),), 281, (1918, 1176), 308),
    Told(
        "llama-8b",
        "llama-3b-tied",
        4,
        True,
        8192,
        0,
        (8, 25),
        ((1013, 256), (3389, 768)),
        281,
        (1918, 896),
        308,
    ),
    Told("llama-70b", "llama-8b", 4, True, 32768, 0, (81,), ((39979, 10240),), 563, (4403, 4096), 281),
    Told("llama-70b", "llama-8b", 3, False, 10000, 0, (81,), ((39979, 3360),), 563, (4403, 1344), 281),
    Told(
        "llama-70b",
        "llama-8b",
        4,
        True,
        8192,
        0,
        (35, 46),
        ((17160, 1120), (22818, 1440)),
        563,
        (4403, 1024),
        281,
    ),
    Told(
        "qwen3-30b-a3b", "qwen3next-80b", 4, True, 32768, 0, (49,), ((17524, 3072),), 166, (46070, 1069), 166
    ),
    Told(
        "qwen3-30b-a3b", "qwen3next-80b", 3, False, 10000, 0, (49,), ((17524, 1008),), 166, (46070, 478), 166
    ),
    Told(
        "qwen3-30b-a3b",
        "qwen3next-80b",
        4,
        True,
        8192,
        0,
        (1, 48),
        ((384, 16), (17139, 752)),
        166,
        (46070, 493),
        166,
    ),
    Told(
        "qwen3-30b-a3b", "qwen3next-80b", 4, True, 32768, 7, (49,), ((14959, 3072),), 2731, (46070, 1069), 166
    ),
    Told(
        "qwen3next-80b", "qwen3-30b-a3b", 4, True, 32768, 0, (49,), ((46070, 1069),), 166, (17524, 3072), 166
    ),
    Told(
        "qwen3next-80b", "qwen3-30b-a3b", 3, False, 10000, 0, (49,), ((46070, 478),), 166, (17524, 1008), 166
    ),
    Told(
        "qwen3next-80b",
        "qwen3-30b-a3b",
        4,
        True,
        8192,
        0,
        (14, 35),
        ((14032, 140), (32037, 353)),
        166,
        (17524, 768),
        166,
    ),
    Told(
        "qwen3next-80b", "qwen3-30b-a3b", 4, True, 32768, 7, (49,), ((39098, 1069),), 7138, (17524, 3072), 166
    ),
    Told("gemma3-12b", "gemma3n-e4b", 4, True, 32768, 0, (49,), ((6956, 3488),), 787, (2875, 336), 1680),
    Told("gemma3-12b", "gemma3n-e4b", 3, False, 10000, 0, (49,), ((6956, 2112),), 787, (2875, 180), 1680),
    Told(
        "gemma3-12b",
        "gemma3n-e4b",
        4,
        True,
        8192,
        0,
        (17, 32),
        ((2192, 668), (4763, 1284)),
        787,
        (2875, 144),
        1680,
    ),
    Told("llama-8b", "gpt-oss-20b", 4, True, 32768, 0, (33,), ((4403, 4096),), 281, (14680, 792), 379),
    Told("llama-8b", "gpt-oss-20b", 3, False, 10000, 0, (33,), ((4403, 1344),), 281, (14680, 306), 379),
    Told(
        "llama-8b", "gpt-oss-20b", 4, True, 8192, 0, (1, 32), ((132, 32), (4270, 992)), 281, (14680, 216), 379
    ),
    Told("deepseek-v2-lite", "lfm2-1b", 4, True, 32768, 0, (28,), ((9771, 972),), 112, (694, 384), 105),
    Told("deepseek-v2-lite", "lfm2-1b", 3, False, 10000, 0, (28,), ((9771, 318),), 112, (694, 126), 105),
    Told(
        "deepseek-v2-lite",
        "lfm2-1b",
        4,
        True,
        8192,
        0,
        (13, 15),
        ((4561, 117), (5209, 126)),
        112,
        (694, 96),
        105,
    ),
    Told("deepseek-v2-lite", "lfm2-1b", 4, True, 32768, 7, (28,), ((7527, 972),), 2356, (694, 384), 105),
)
