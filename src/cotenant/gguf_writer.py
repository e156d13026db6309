"""Write the header of a GGUF file (version 3) from metadata and tensors."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.analysis.ggml_types import GGML_TYPES

ALIGNMENT: Final = 32

TYPE_IDS: Final = {kind.name: number for number, kind in GGML_TYPES.items()}

Scalar = bool | int | float | str
MetadataValue = Scalar | Sequence[Scalar]

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_FORMATS: Final = {_UINT32: "I", _INT32: "i", _FLOAT32: "f", _BOOL: "?"}
_TYPES: Final = ((bool, _BOOL), (int, _UINT32), (float, _FLOAT32))


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to write: `dims` innermost first, `type_name` as ggml spells it (`F16`, `Q4_K`)."""

    name: str
    dims: tuple[int, ...]
    type_name: str

    @property
    def n_bytes(self) -> int:
        """Size of the data. Raises KeyError on an unknown type."""
        kind = GGML_TYPES[TYPE_IDS[self.type_name]]
        return math.prod(self.dims) // kind.block_elements * kind.block_bytes


def padded(n: int) -> int:
    """Round `n` up to a multiple of ALIGNMENT."""
    return -(-n // ALIGNMENT) * ALIGNMENT


def encode_header(
    metadata: Mapping[str, MetadataValue], tensors: Sequence[TensorSpec], version: int = 3
) -> bytes:
    """Encode everything before the data, padding included; tensor data follow in order, each padded.

    Whole numbers become uint32 alone and int32 in arrays, other numbers float32.
    """
    out = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    for key, value in metadata.items():
        out += [_text(key), _value(value)]
    offset = 0
    for tensor in tensors:
        dims = struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
        out += [_text(tensor.name), dims, struct.pack("<IQ", TYPE_IDS[tensor.type_name], offset)]
        offset += padded(tensor.n_bytes)
    header = b"".join(out)
    return header.ljust(padded(len(header)), b"\0")


def _value(value: MetadataValue) -> bytes:
    if isinstance(value, Sequence) and not isinstance(value, str):
        kind = _type_of(value[0]) if value else _STRING
        kind = _INT32 if kind == _UINT32 else kind
        head = struct.pack("<IIQ", _ARRAY, kind, len(value))
        if kind == _STRING:
            return head + b"".join([_text(str(item)) for item in value])
        return head + struct.pack(f"<{len(value)}{_FORMATS[kind]}", *value)
    kind = _type_of(value)
    head = struct.pack("<I", kind)
    return head + (_text(str(value)) if kind == _STRING else struct.pack("<" + _FORMATS[kind], value))


def _type_of(value: Scalar) -> int:
    return next((number for kind, number in _TYPES if isinstance(value, kind)), _STRING)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
