"""What llama.cpp hard-codes per architecture about memory, as tables.

Read in llama.cpp at commit 0c1e570: `src/models/*.cpp` (`load_arch_hparams`), `llama_model::create_memory`
and `llama-arch.cpp`. Architectures in PLAIN have plain attention in every block; an architecture in no table
is treated the same, but its result is not marked as exact.
"""

from dataclasses import dataclass
from typing import Final


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True, slots=True)
class SlidingRule:
    """Which blocks attend to a window only, unless the file lists them.

    One block in each `period` is full: the last, or the first with `dense_first`. A period of None means that
    the file must list them, and 0 that all slide. `window` replaces a missing key; with `fixed`, also the
    value of the key. `only_blocks`: the rule applies to models with that many blocks.
    """

    period: int | None
    window: int | None = None
    dense_first: bool = False
    fixed: bool = False
    only_blocks: int | None = None


SLIDING: Final = {
    "afmoe": SlidingRule(4),
    "cohere2": SlidingRule(4),
    "cohere2moe": SlidingRule(4, dense_first=True),
    "exaone-moe": SlidingRule(4, window=128),
    "exaone4": SlidingRule(4, window=4096, only_blocks=64),
    "gemma2": SlidingRule(2, window=4096),
    "gemma3": SlidingRule(6),
    "gemma3n": SlidingRule(5),
    "gemma4": SlidingRule(None),
    "gpt-oss": SlidingRule(2),
    "granite_swa": SlidingRule(None),
    "laguna": SlidingRule(4, dense_first=True),
    "lfm2": SlidingRule(0),
    "llama4": SlidingRule(4, window=8192, fixed=True),
    "maple": SlidingRule(None),
    "mellum": SlidingRule(4),
    "mimo2": SlidingRule(None),
    "muse-glimmer": SlidingRule(4),
    "olmo2": SlidingRule(4),
    "plamo3": SlidingRule(8),
    "smallthinker": SlidingRule(4, window=4096, dense_first=True, fixed=True),
    "spark2_5": SlidingRule(None),
    "step35": SlidingRule(None),
}

WITHOUT_CACHE: Final = _names(
    """bert jina-bert-v2 jina-bert-v3 nomic-bert nomic-bert-moe neo-bert eurobert modern-bert gemma-embedding
    dream llada llada-moe rnd1
    """
)
"""Encoders and diffusion models: nothing is cached between batches."""

WITHOUT_OUTPUT: Final = _names(
    """bert jina-bert-v2 jina-bert-v3 nomic-bert nomic-bert-moe neo-bert eurobert modern-bert"""
)
"""Encoders that have no output matrix, tied or not."""

RECURRENT: Final = _names("mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7")
"""Every block is recurrent and none attends."""

RECURRENT_WHERE_NO_KV_HEADS: Final = _names(
    "jamba granitehybrid lfm2 lfm2moe kimi-linear plamo2 nemotron_h nemotron_h_moe"
)
"""Blocks with `head_count_kv` 0 are recurrent (in nemotron_h, those without a feed-forward width)."""

RECURRENT_BY_INTERVAL: Final = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}
"""All blocks but every n-th are recurrent; the key `full_attention_interval` or a list takes precedence."""

RECURRENT_AND_ATTENDING: Final = frozenset(["falcon-h1"])

WITHOUT_STATE_GROUPS: Final = frozenset(["mamba", "jamba"])
"""First-generation Mamba, whose convolution ignores the groups."""

LATENT: Final = _names("deepseek2 mistral4 kimi-linear deepseek32 glm-dsa")
"""Multi-head latent attention: one compressed K per token and no V, if the file has `key_length_mla`."""

GEMMA3N_BLOCKS_WITH_KV: Final = 20

PLAIN: Final = _names(
    """apertus arcee arctic baichuan bailingmoe bailingmoe2 bitnet bloom chameleon chatglm codeshell cogvlm
    command-r dbrx deci deepseek deepseek2-ocr dots1 ernie4_5 ernie4_5-moe exaone falcon gemma glm4
    glm4moe gpt2 gptj gptneox granite granitemoe grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl hy_v3
    internlm2 jais jais2 llama llama-embed maincoder minicpm minicpm3 minimax-m2 mistral3 mpt nemotron
    olmo olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo plm qwen qwen2 qwen2moe
    qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe refact seed_oss smollm3 stablelm starcoder starcoder2 talkie
    xverse
    """
)
"""Plain attention in every block: none of their loaders touches heads, windows or recurrence."""

INDEXED: Final = _names("deepseek32 deepseek4 glm-dsa glm5-next hy_v4 dots3note minimax-m3 qwen4exp")
"""Sparse attention with an index in addition to the cache; the size of the index is not modelled."""

KV_EXACT: Final = (
    PLAIN
    | WITHOUT_CACHE
    | RECURRENT
    | RECURRENT_WHERE_NO_KV_HEADS
    | RECURRENT_AND_ATTENDING
    | frozenset(SLIDING)
    | frozenset(RECURRENT_BY_INTERVAL)
    | LATENT
) - INDEXED
"""Architectures whose cache rule was read in the source and is modelled here."""

COMPUTE_KNOWN: Final = frozenset(["llama", "qwen2", "qwen3"])
"""Dense blocks of gate, up and down, full attention and one residual stream: the formula of
`footprint` was fitted to this graph and compared with the engine's own numbers."""

DRAFTS: Final = {
    "eagle3": "an EAGLE-3 draft head",
    "dflash": "a DFlash draft model",
    "gemma4-assistant": "a Gemma 4 draft model",
}
"""Models that run only together with another one."""

NOT_TEXT: Final = {
    "wavtokenizer-dec": "a vocoder",
    "pockettts": "a speech model",
    "controlvector": "a control vector",
}
