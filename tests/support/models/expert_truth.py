"""What llama.cpp says of mixtures of experts with the experts of some blocks in host RAM, to compare with.

As in `engine_truth`, with one or two `ggml-rpc-server` in place of the GPUs, and of the first breakdown:

    llama-server -m MODEL --rpc SERVERS -c 32768 -ub 512 -fa on -lv 5 -np SLOTS -kvu -nr \\
        -ngl LAYERS -ts SPLIT -ncmoe EXPERTS

SLOTS is 1 on one device, 4 on two. SPLIT is what the plan balanced, LAYERS its sum.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """One load: whole MiB of weights and KV by device, and of weights in host RAM."""

    model: str
    n_cpu_moe: int
    tensor_split: tuple[int, ...]
    devices: tuple[tuple[int, int], ...]
    host_weights: int


EXPERT_TRUTH = (
    Told("qwen3-30b-a3b", 1, (49,), ((17150, 3072),), 540),
    Told("qwen3-30b-a3b", 1, (25, 24), ((8602, 1600), (8548, 1472)), 540),
    Told("qwen3-30b-a3b", 16, (49,), ((11894, 3072),), 5796),
    Told("qwen3-30b-a3b", 16, (31, 18), ((5456, 1984), (6438, 1088)), 5796),
    Told("qwen3-30b-a3b", 48, (49,), ((784, 3072),), 16906),
    Told("qwen3-30b-a3b", 48, (25, 24), ((281, 1600), (502, 1472)), 16906),
    Told("deepseek-v2-lite", 1, (28,), ((9771, 972),), 112),
    Told("deepseek-v2-lite", 1, (14, 14), ((4898, 504), (4873, 468)), 112),
    Told("deepseek-v2-lite", 9, (28,), ((6823, 972),), 3060),
    Told("deepseek-v2-lite", 9, (17, 11), ((3026, 612), (3796, 360)), 3060),
    Told("deepseek-v2-lite", 27, (28,), ((685, 972),), 9198),
    Told("deepseek-v2-lite", 27, (13, 15), ((271, 468), (413, 504)), 9198),
    Told("deepseek-v3", 1, (62,), ((384325, 2196),), 497),
    Told("deepseek-v3", 1, (31, 31), ((188923, 1116), (195402, 1080)), 497),
    Told("deepseek-v3", 20, (62,), ((269497, 2196),), 115325),
    Told("deepseek-v3", 20, (40, 22), ((132498, 1440), (136999, 756)), 115325),
    Told("deepseek-v3", 61, (62,), ((9517, 2196),), 375305),
    Told("deepseek-v3", 61, (22, 40), ((3595, 792), (5922, 1404)), 375305),
    Told("qwen3next-80b", 1, (49,), ((45074, 843),), 1162),
    Told("qwen3next-80b", 1, (24, 25), ((22446, 534), (22627, 534)), 1162),
    Told("qwen3next-80b", 16, (49,), ((30530, 843),), 15706),
    Told("qwen3next-80b", 16, (32, 17), ((15271, 713), (15258, 356)), 15706),
    Told("qwen3next-80b", 48, (49,), ((1430, 843),), 44806),
    Told("qwen3next-80b", 48, (23, 26), ((573, 470), (856, 598)), 44806),
    Told("gpt-oss-20b", 1, (25,), ((14062, 786),), 997),
    Told("gpt-oss-20b", 1, (13, 12), ((6968, 398), (7094, 394)), 997),
    Told("gpt-oss-20b", 8, (25,), ((10116, 786),), 4944),
    Told("gpt-oss-20b", 8, (16, 9), ((4735, 528), (5380, 264)), 4944),
    Told("gpt-oss-20b", 24, (25,), ((986, 786),), 14073),
    Told("gpt-oss-20b", 24, (16, 9), ((266, 528), (720, 264)), 14073),
)
