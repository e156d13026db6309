from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cotenant.domain.models import FlashAttention, Projector, Recipe
from cotenant.domain.units import MIB
from cotenant.gguf_writer import TensorSpec, encode_header
from cotenant.model_files import load_model

_DEEPSTACK = [True] * 3 + [False] * 2


@dataclass(frozen=True)
class Encoder:
    """A vision encoder, and what llama.cpp reserved for an image of `pixels` along its sides, in MiB."""

    kind: str
    sizes: tuple[int, int]
    image: int
    patch: int
    pixels: int
    reserved: float
    without_flash: float = 0.0
    more: dict[str, Any] = field(default_factory=dict)
    gated: bool = False
    projection: int = 4096


# Reserved by xllamacpp 2026.10.11549 for projectors of these sizes with few blocks and weights of zero.
MEASURED = [
    Encoder("mlp", (1024, 4096), 336, 14, 336, 21.55),
    Encoder("mlp", (1024, 4096), 336, 14, 336, 17.05, 30.55, projection=256),
    Encoder("mlp", (512, 4096), 336, 14, 336, 11.42, projection=256),
    Encoder("mlp", (1024, 1024), 336, 14, 336, 12.55, projection=256),
    Encoder("gemma3", (1152, 4304), 896, 14, 896, 121.25, 1132.0, projection=5376),
    Encoder("qwen2vl_merger", (1280, 5120), 560, 14, 1288, 267.08, 4598.27),
    Encoder("qwen2.5vl_merger", (1280, 3456), 560, 14, 1288, 573.19, 0, {"n_wa_pattern": 8}, gated=True),
    Encoder("qwen2.5vl_merger", (1280, 3456), 560, 14, 1288, 362.41, 0, {"n_wa_pattern": 8}),
    Encoder("qwen3vl_merger", (1152, 4304), 768, 16, 1472, 248.10),
    Encoder("qwen3vl_merger", (1152, 4304), 768, 16, 1472, 359.68, 0, {"is_deepstack_layers": _DEEPSTACK}),
    Encoder("pixtral", (1024, 4096), 1024, 16, 256, 16.56, gated=True, projection=5120),
]


def projector(path: Path, encoder: Encoder, kind: str) -> Projector:
    embd, ff = encoder.sizes
    vision = {
        "image_size": encoder.image,
        "patch_size": encoder.patch,
        "embedding_length": embd,
        "feed_forward_length": ff,
        "attention.head_count": 16,
        "projection_dim": encoder.projection,
        **({"spatial_merge_size": 2} if "qwen" in encoder.kind else {}),
        **encoder.more,
    }
    keys: dict[str, Any] = {"general.architecture": "clip", "clip.projector_type": kind}
    keys |= {f"clip.vision.{key}": value for key, value in vision.items()}
    specs = [TensorSpec("v.blk.0.ffn_gate.weight", (32, 32), "F32")] if encoder.gated else []
    specs.append(TensorSpec("v.blk.0.ffn_up.weight", (32, 32), "F32"))
    return written(path, keys, specs)


def written(path: Path, keys: dict[str, Any], specs: list[TensorSpec]) -> Projector:
    path.write_bytes(encode_header(keys, specs) + bytes(4096 * len(specs)))
    found = load_model(path).projector
    assert found is not None
    return found


@pytest.mark.parametrize("encoder", MEASURED, ids=lambda each: f"{each.kind}-{each.reserved}")
def test_what_llama_cpp_reserves_is_within_the_formula(tmp_path: Path, encoder: Encoder) -> None:
    # It is given a fixed size, since the engine reserves for a smaller image than the largest.
    warm = replace(encoder, image=encoder.pixels)
    found = projector(tmp_path / "mmproj.gguf", warm, encoder.kind if encoder.kind == "gemma3" else "mlp")
    on, off = (
        found.parts(Recipe(flash_attention=flash)).compute / MIB
        for flash in (FlashAttention.ON, FlashAttention.OFF)
    )
    assert encoder.reserved <= on <= 1.4 * encoder.reserved
    if encoder.without_flash:
        assert encoder.without_flash <= off <= 1.4 * encoder.without_flash


def test_a_projector_for_any_size_is_planned_for_the_largest_image(tmp_path: Path) -> None:
    path = tmp_path / "mmproj.gguf"
    plain = Encoder("qwen2vl_merger", (1280, 5120), 560, 14, 1288, 267.08)
    largest = projector(path, replace(plain, image=14 * 128), "mlp")
    assert projector(path, plain, plain.kind).compute == largest.compute
    stated = replace(plain, more={"image_max_pixels": (14 * 64) ** 2})
    assert projector(path, stated, "dots_ocr") == projector(path, replace(plain, image=14 * 64), "mlp")


def test_sound_needs_memory_too_and_an_encoder_without_sizes_counts_none(tmp_path: Path) -> None:
    path = tmp_path / "mmproj.gguf"
    head: dict[str, Any] = {"general.architecture": "clip", "clip.projector_type": "ultravox"}
    whisper = {"clip.audio.embedding_length": 1280, "clip.audio.feed_forward_length": 5120}
    specs = [TensorSpec("a.blk.0.ffn_up.weight", (32, 32), "F32")]
    for keys, compute in ((head | whisper, 4 * 1500 * (5120 + 3 * 1280)), (head, 0)):
        assert written(path, keys, specs) == Projector(4096, compute, 0)


@pytest.mark.parametrize(
    ("keys", "takes"),
    [
        ({}, (True, True)),
        ({"has_vision_encoder": True}, (True, False)),
        ({"has_audio_encoder": True}, (False, True)),
        ({"has_vision_encoder": True, "has_audio_encoder": True}, (True, True)),
        ({"has_vision_encoder": False, "has_audio_encoder": True}, (False, True)),
        ({"has_vision_encoder": "yes"}, (True, True)),
    ],
)
def test_a_projector_says_what_it_encodes(
    tmp_path: Path, keys: dict[str, Any], takes: tuple[bool, bool]
) -> None:
    head = {"general.architecture": "clip", **{f"clip.{key}": value for key, value in keys.items()}}
    found = written(tmp_path / "mmproj.gguf", head, [TensorSpec("a.blk.0.ffn_up.weight", (32, 32), "F32")])
    assert (found.images, found.sounds) == takes
