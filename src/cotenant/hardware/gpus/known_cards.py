"""Well-known GPUs, so that a name alone describes one."""

import difflib
from dataclasses import dataclass

from cotenant.domain.units import MIB


@dataclass(frozen=True, slots=True)
class Card:
    """A model of GPU: memory as `nvidia-smi` shows it, and the data sheet's bandwidth."""

    name: str
    total_bytes: int
    bandwidth_bytes_per_s: int
    compute_capability: tuple[int, int]


# name, total MiB, GB/s, compute capability
_FACTS = (
    ("RTX 2060", 6144, 336, (7, 5)),
    ("RTX 2060 SUPER", 8192, 448, (7, 5)),
    ("RTX 2070", 8192, 448, (7, 5)),
    ("RTX 2070 SUPER", 8192, 448, (7, 5)),
    ("RTX 2080", 8192, 448, (7, 5)),
    ("RTX 2080 SUPER", 8192, 496, (7, 5)),
    ("RTX 2080 Ti", 11264, 616, (7, 5)),
    ("TITAN RTX", 24576, 672, (7, 5)),
    ("RTX 3050", 8192, 224, (8, 6)),
    ("RTX 3060", 12288, 360, (8, 6)),
    ("RTX 3060 Ti", 8192, 448, (8, 6)),
    ("RTX 3070", 8192, 448, (8, 6)),
    ("RTX 3070 Ti", 8192, 608, (8, 6)),
    ("RTX 3080", 10240, 760, (8, 6)),
    ("RTX 3080 12GB", 12288, 912, (8, 6)),
    ("RTX 3080 Ti", 12288, 912, (8, 6)),
    ("RTX 3090", 24576, 936, (8, 6)),
    ("RTX 3090 Ti", 24564, 1008, (8, 6)),
    ("RTX 4060", 8188, 272, (8, 9)),
    ("RTX 4060 Ti", 8188, 288, (8, 9)),
    ("RTX 4060 Ti 16GB", 16380, 288, (8, 9)),
    ("RTX 4070", 12282, 504, (8, 9)),
    ("RTX 4070 SUPER", 12282, 504, (8, 9)),
    ("RTX 4070 Ti", 12282, 504, (8, 9)),
    ("RTX 4070 Ti SUPER", 16376, 672, (8, 9)),
    ("RTX 4080", 16376, 717, (8, 9)),
    ("RTX 4080 SUPER", 16376, 736, (8, 9)),
    ("RTX 4090", 24564, 1008, (8, 9)),
    ("RTX 5060", 8151, 448, (12, 0)),
    ("RTX 5060 Ti", 8151, 448, (12, 0)),
    ("RTX 5060 Ti 16GB", 16311, 448, (12, 0)),
    ("RTX 5070", 12227, 672, (12, 0)),
    ("RTX 5070 Ti", 16303, 896, (12, 0)),
    ("RTX 5080", 16303, 960, (12, 0)),
    ("RTX 5090", 32607, 1792, (12, 0)),
    ("RTX A400", 4094, 96, (8, 6)),
    ("RTX A4000", 16376, 448, (8, 6)),
    ("RTX A4500", 20470, 640, (8, 6)),
    ("RTX A5000", 24564, 768, (8, 6)),
    ("RTX A5500", 24564, 768, (8, 6)),
    ("RTX A6000", 49140, 768, (8, 6)),
    ("RTX 4000 Ada", 20475, 360, (8, 9)),
    ("RTX 5000 Ada", 32760, 576, (8, 9)),
    ("RTX 6000 Ada", 49140, 960, (8, 9)),
    ("RTX PRO 6000 Blackwell", 97887, 1792, (12, 0)),
    ("T4", 15360, 320, (7, 5)),
    ("V100 16GB", 16384, 900, (7, 0)),
    ("V100 32GB", 32768, 900, (7, 0)),
    ("A2", 15356, 200, (8, 6)),
    ("A10", 23028, 600, (8, 6)),
    ("A30", 24576, 933, (8, 0)),
    ("A40", 46068, 696, (8, 6)),
    ("A100 40GB", 40960, 1555, (8, 0)),
    ("A100 80GB", 81920, 2039, (8, 0)),
    ("L4", 23034, 300, (8, 9)),
    ("L40", 46068, 864, (8, 9)),
    ("L40S", 46068, 864, (8, 9)),
    ("H100", 81559, 3350, (9, 0)),
    ("H100 PCIe", 81559, 2000, (9, 0)),
    ("H200", 143771, 4800, (9, 0)),
)


def _key(name: str) -> str:
    words = name.casefold().replace("-", " ").replace("_", " ").split()
    return "".join(word for word in words if word not in ("nvidia", "geforce", "tesla"))


_CARDS = {
    _key(name): Card(name, mib * MIB, gb_per_s * 10**9, capability)
    for name, mib, gb_per_s, capability in _FACTS
}


def find_card(name: str) -> Card | None:
    """Return the card of that name, in any case, spacing, and with or without `NVIDIA GeForce`."""
    return _CARDS.get(_key(name))


def nearest_cards(name: str) -> tuple[str, ...]:
    """Return up to three names of known cards that look like `name`, best first."""
    keys = difflib.get_close_matches(_key(name), _CARDS, n=3, cutoff=0.5)
    return tuple(_CARDS[key].name for key in keys)
