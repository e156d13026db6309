"""A vision projector small enough for tests, which llama.cpp loads beside the tiny llama."""

import random
import struct
import zlib
from pathlib import Path

from cotenant.demo_model import N_EMBD
from cotenant.gguf_writer import TensorSpec, encode_header, padded
from tests.support.models.sparse import Dims, Metadata

_WIDTH, _N_FF, _N_BLOCKS = 32, 64, 2
_IMAGE, _PATCH = 32, 8


def build_tiny_projector(path: Path, image: int = _IMAGE) -> Path:
    """Write an mmproj with random weights: 32 by 32 pixels become 16 tokens of the tiny llama."""
    metadata: Metadata = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": "Tiny projector (random weights)",
        "general.file_type": 0,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": True,
        "clip.vision.image_size": image,
        "clip.vision.patch_size": _PATCH,
        "clip.vision.embedding_length": _WIDTH,
        "clip.vision.feed_forward_length": _N_FF,
        "clip.vision.block_count": _N_BLOCKS,
        "clip.vision.attention.head_count": 2,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.projection_dim": N_EMBD,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
    }
    shapes: dict[str, Dims] = {
        "v.patch_embd.weight": (_PATCH, _PATCH, 3, _WIDTH),
        "v.position_embd.weight": (_WIDTH, (image // _PATCH) ** 2),
        "mm.0.weight": (_WIDTH, N_EMBD),
        "mm.0.bias": (N_EMBD,),
        "mm.2.weight": (N_EMBD, N_EMBD),
        "mm.2.bias": (N_EMBD,),
    }
    square = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (_WIDTH, _WIDTH))
    matrices = square | {"ffn_up": (_WIDTH, _N_FF), "ffn_down": (_N_FF, _WIDTH)}
    for block in (f"v.blk.{index}" for index in range(_N_BLOCKS)):
        for name, dims in matrices.items():
            shapes |= {f"{block}.{name}.weight": dims, f"{block}.{name}.bias": dims[1:]}
        for name in ("ln1", "ln2"):
            shapes |= {f"{block}.{name}.weight": (_WIDTH,), f"{block}.{name}.bias": (_WIDTH,)}
    specs = [TensorSpec(name, dims, "F32") for name, dims in shapes.items()]
    rng = random.Random(11)
    with path.open("wb") as file:
        file.write(encode_header(metadata, specs))
        for spec in specs:
            values = [rng.gauss(0, 0.2) for _ in range(spec.n_bytes // 4)]
            file.write(struct.pack(f"<{len(values)}f", *values).ljust(padded(spec.n_bytes), b"\0"))
    return path


def png(red: int, green: int, blue: int, side: int = 40) -> bytes:
    """A square picture of one colour."""
    row = b"\0" + bytes((red, green, blue)) * side
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * side)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
