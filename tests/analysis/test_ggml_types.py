from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from cotenant.analysis.ggml_types import FILE_TYPES, GGML_TYPES


def test_every_type_of_the_gguf_package_is_known_with_its_size() -> None:
    ours = {number: (kind.name, kind.block_elements, kind.block_bytes) for number, kind in GGML_TYPES.items()}
    theirs = {int(kind): (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}
    assert theirs.items() <= ours.items()


def test_every_file_type_of_the_gguf_package_has_a_label() -> None:
    labels = {
        int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        for kind in LlamaFileType
        if kind is not LlamaFileType.GUESSED
    }
    assert labels.items() <= FILE_TYPES.items()
    assert FILE_TYPES[15] == "Q4_K_M"
