"""Computes what a projector takes, with the working memory of its encoders.

llama.cpp reserves that for a warm-up image at load and grows it for a larger one (`tools/mtmd/clip.cpp`), so
it is planned for the largest. The formula is up to 36 % above what xllamacpp 2026.10.11549 reserves for
encoders as of CLIP, SigLIP, Pixtral and Qwen-VL (`tests/analysis/test_encoder.py`); others are less sure.
"""

from collections.abc import Mapping
from typing import Final

from cotenant.analysis.hyperparameters import Hyperparameters
from cotenant.domain.models import Projector

_F32: Final = 4
_AUDIO_POSITIONS: Final = 1500  # of 30 s, which Whisper's encoder takes at once
_SIZES: Final[Mapping[str, tuple[int, int]]] = {
    **dict.fromkeys(("qwen2vl_merger", "qwen2.5vl_merger", "qwen2.5o", "qwen3vl_merger", "glm4v"), (4096, 2)),
    "kimik25": (4096, 1),
    **dict.fromkeys(("pixtral", "kimivl"), (1024, 1)),
    "gemma3": (0, 4),
    "gemma4v": (280, 3),
    "lfm2": (256, 1),
}
"""The most tokens of an image, 0 if its size is fixed, and the patches along a token's side."""


def projector(hp: Hyperparameters) -> Projector:
    """Return what the projector of a header takes; an encoder that lacks a key counts nothing."""
    patch, embd = _count(hp, "clip.vision.patch_size"), _count(hp, "clip.vision.embedding_length")
    kind = hp.text("clip.vision.projector_type") or hp.text("clip.projector_type") or ""
    tokens, merge = _SIZES.get(kind, (0, 1))
    scale = _count(hp, "clip.vision.projector.scale_factor")
    merge = _count(hp, "clip.vision.spatial_merge_size") or scale or merge
    pixels = _count(hp, "clip.vision.image_max_pixels") or _count(hp, "clip.vision.image_size") ** 2
    patches = 1 + (tokens * merge**2 or pixels // max(1, patch) ** 2)  # with the class token
    projected = 2 * _count(hp, "clip.vision.projection_dim") // merge**2 + embd
    stacked = sum(map(bool, hp.array("clip.vision.is_deepstack_layers") or ()))
    width = max(_width(hp, "vision"), projected) + 3 * patch**2 + stacked * embd
    compute = _F32 * patches * width
    if _count(hp, "clip.vision.n_wa_pattern"):
        mask = 2 * patches**2  # of the windows, as F16; it comes as F32
        compute = max(mask + compute, 3 * mask + 2 * _F32 * patches * embd)
    compute += _F32 * _AUDIO_POSITIONS * _width(hp, "audio")
    scores = patches**2 * _count(hp, "clip.vision.attention.head_count")
    scores += _AUDIO_POSITIONS**2 * _count(hp, "clip.audio.attention.head_count")
    images, sounds = (hp.header.metadata.get(f"clip.has_{each}_encoder") for each in ("vision", "audio"))
    says = images is True or sounds is True
    return Projector(
        sum(tensor.n_bytes for tensor in hp.header.tensors),
        compute,
        _F32 * scores,
        images=images is True or not says,
        sounds=sounds is True or not says,
    )


def _width(hp: Hyperparameters, encoder: str) -> int:
    """Return the floats per position at a block's peak: in its feed-forward part or its attention."""
    embd, ff = (_count(hp, f"clip.{encoder}.{key}_length") for key in ("embedding", "feed_forward"))
    gated = any(tensor.name.endswith(".blk.0.ffn_gate.weight") for tensor in hp.header.tensors)
    return max(3 * ff + 4 * embd if gated else ff + 3 * embd, 5 * embd)


def _count(hp: Hyperparameters, key: str) -> int:
    """Return a count, 0 if the key is absent or says something else: a projector loads without it."""
    value = hp.header.metadata.get(key)
    return value if isinstance(value, int) and value > 0 else 0
