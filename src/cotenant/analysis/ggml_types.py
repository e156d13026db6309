"""The element types of ggml: how many bytes a tensor's elements take.

Source: `GGML_QUANT_SIZES` and `LlamaFileType` of the `gguf` package 0.19, and ggml-common.h for Q2_0.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class GgmlType:
    """An element type: `block_elements` of a row are stored together in `block_bytes`."""

    name: str
    block_elements: int
    block_bytes: int

    @property
    def quantised(self) -> bool:
        """Whether elements share a block."""
        return self.block_elements > 1


_TYPES: Final = {
    1: "0 F32 4, 1 F16 2, 24 I8 1, 25 I16 2, 26 I32 4, 27 I64 8, 28 F64 8, 30 BF16 2",
    32: "2 Q4_0 18, 3 Q4_1 20, 6 Q5_0 22, 7 Q5_1 24, 8 Q8_0 34, 9 Q8_1 40, 20 IQ4_NL 18, 39 MXFP4 17",
    64: "40 NVFP4 36, 42 Q2_0 18",
    128: "41 Q1_0 18",
    256: (
        "10 Q2_K 84, 11 Q3_K 110, 12 Q4_K 144, 13 Q5_K 176, 14 Q6_K 210, 15 Q8_K 292, 16 IQ2_XXS 66, "
        "17 IQ2_XS 74, 18 IQ3_XXS 98, 19 IQ1_S 50, 21 IQ3_S 110, 22 IQ2_S 82, 23 IQ4_XS 136, "
        "29 IQ1_M 56, 34 TQ1_0 54, 35 TQ2_0 66"
    ),
}
"""By the elements of a block: number, name and bytes of each type."""
_LABELS: Final = """
    0 F32, 1 F16, 2 Q4_0, 3 Q4_1, 7 Q8_0, 8 Q5_0, 9 Q5_1, 10 Q2_K, 11 Q3_K_S, 12 Q3_K_M, 13 Q3_K_L,
    14 Q4_K_S, 15 Q4_K_M, 16 Q5_K_S, 17 Q5_K_M, 18 Q6_K, 19 IQ2_XXS, 20 IQ2_XS, 21 Q2_K_S, 22 IQ3_XS,
    23 IQ3_XXS, 24 IQ1_S, 25 IQ4_NL, 26 IQ3_S, 27 IQ3_M, 28 IQ2_S, 29 IQ2_M, 30 IQ4_XS, 31 IQ1_M, 32 BF16,
    36 TQ1_0, 37 TQ2_0, 38 MXFP4_MOE, 39 NVFP4, 40 Q1_0, 41 Q2_0
"""

GGML_TYPES: Final = {
    int(number): GgmlType(name, elements, int(size))
    for elements, types in _TYPES.items()
    for number, name, size in (each.split() for each in types.split(","))
}
FILE_TYPES: Final = {int(number): label for number, label in (each.split() for each in _LABELS.split(","))}
"""Labels of `general.file_type`."""
