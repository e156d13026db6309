"""What llama.cpp says of the sparse models, to compare with.

llama.cpp 0.5.0-dev (commit 0c1e570), CPU and RPC build. One `ggml-rpc-server` stood in for the GPU; for each
model and setting, `llama-server` rehearsed its load, and its first memory breakdown was written down:

    llama-server -m MODEL --rpc 127.0.0.1:PORT -c 32768 -ub 512 -fa on -lv 4 SLOTS

Values are MiB, cut off to whole ones by the engine. SLOTS: ONE `-np 1`, FOUR_UNIFIED `-np 4 -kvu`, FOUR_SPLIT
`-np 4 -no-kvu`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

N_CTX = 32768
N_UBATCH = 512


@dataclass(frozen=True)
class Told:
    """One setting: what is on the device, and what is in host RAM."""

    weights: int
    kv: int
    compute: int
    host_weights: int
    host_compute: int


@dataclass(frozen=True)
class ThreeSettings:
    """One model under the three settings."""

    one: Told
    four_unified: Told
    four_split: Told


ENGINE_TRUTH: Mapping[str, ThreeSettings] = {
    "llama-8b": ThreeSettings(
        one=Told(4403, 4096, 140, 281, 48),
        four_unified=Told(4403, 4096, 140, 281, 48),
        four_split=Told(4403, 4096, 116, 281, 24),
    ),
    "llama-70b": ThreeSettings(
        one=Told(39979, 10240, 248, 563, 64),
        four_unified=Told(39979, 10240, 248, 563, 64),
        four_split=Told(39979, 10240, 224, 563, 40),
    ),
    "llama-3b-tied": ThreeSettings(
        one=Told(1918, 3584, 98, 308, 44),
        four_unified=Told(1918, 3584, 98, 308, 44),
        four_split=Told(1918, 3584, 74, 308, 20),
    ),
    "qwen3-30b-a3b": ThreeSettings(
        one=Told(17524, 3072, 116, 166, 40),
        four_unified=Told(17524, 3072, 116, 166, 40),
        four_split=Told(17524, 3072, 92, 166, 16),
    ),
    "gemma3-12b": ThreeSettings(
        one=Told(6956, 2528, 146, 787, 48),
        four_unified=Told(6956, 3488, 149, 787, 51),
        four_split=Told(6956, 3968, 122, 787, 24),
    ),
    "deepseek-v2-lite": ThreeSettings(
        one=Told(9771, 972, 108, 112, 40),
        four_unified=Told(9771, 972, 108, 112, 40),
        four_split=Told(9771, 972, 84, 112, 16),
    ),
    "deepseek-v3": ThreeSettings(
        one=Told(384325, 2196, 410, 497, 60),
        four_unified=Told(384325, 2196, 410, 497, 60),
        four_split=Told(384325, 2196, 386, 497, 36),
    ),
    "qwen3next-80b": ThreeSettings(
        one=Told(46070, 843, 114, 166, 40),
        four_unified=Told(46070, 1069, 114, 166, 40),
        four_split=Told(46070, 1069, 90, 166, 16),
    ),
    "mamba-2.8b": ThreeSettings(
        one=Told(1548, 23, 60, 100, 10),
        four_unified=Told(1548, 95, 61, 100, 10),
        four_split=Told(1548, 95, 61, 100, 10),
    ),
    "gpt-oss-20b": ThreeSettings(
        one=Told(14680, 786, 119, 379, 44),
        four_unified=Told(14680, 792, 119, 379, 44),
        four_split=Told(14680, 840, 95, 379, 20),
    ),
    "lfm2-1b": ThreeSettings(
        one=Told(694, 384, 88, 105, 40),
        four_unified=Told(694, 384, 88, 105, 40),
        four_split=Told(694, 384, 64, 105, 16),
    ),
    "gemma3n-e4b": ThreeSettings(
        one=Told(2875, 288, 182, 1680, 58),
        four_unified=Told(2875, 336, 184, 1680, 60),
        four_split=Told(2875, 384, 158, 1680, 34),
    ),
    "cohere2-7b": ThreeSettings(
        one=Told(4812, 1456, 152, 820, 52),
        four_unified=Told(4812, 2608, 164, 820, 64),
        four_split=Told(4812, 2752, 128, 820, 28),
    ),
    "qwen3next-80b-mtp": ThreeSettings(
        one=Told(46070, 843, 114, 166, 40),
        four_unified=Told(46070, 1069, 114, 166, 40),
        four_split=Told(46070, 1069, 90, 166, 16),
    ),
}
