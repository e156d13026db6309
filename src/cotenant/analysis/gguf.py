"""The header of a GGUF file, read without its data and without its vocabulary.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the checks follow llama.cpp's own
reader (`ggml/src/gguf.cpp`), so that a file that passes here also loads there. Time and memory are bounded
by the caps below, whatever the file says: long arrays are skipped, counts are checked against the bytes left.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from cotenant.analysis.ggml_types import GGML_TYPES, GgmlType
from cotenant.analysis.magic import describe_magic
from cotenant.analysis.source import ByteSource
from cotenant.domain.errors import CorruptModelFile, NotAModelFile, UnsupportedModelFile
from cotenant.domain.units import format_bytes

HEADER_LIMIT: Final = 128 << 20
_WINDOW: Final = 1 << 20
_KEPT_ELEMENTS: Final = 4096
_KEPT_NUMBERS: Final = 1 << 18
_KEPT_TEXT: Final = 8 << 20
_MAX_KEYS: Final = 1 << 16
_MAX_TENSORS: Final = 1 << 17
_MAX_KEY: Final = 1 << 16
_MAX_TENSOR_NAME: Final = 128
_MAX_DIMS: Final = 4
_MAX_ELEMENTS: Final = (1 << 63) - 1
_DEFAULT_ALIGNMENT: Final = 32

_LENGTH: Final = struct.Struct("<Q")
_TYPE: Final = struct.Struct("<I")
_STRING: Final = 8
_ARRAY: Final = 9
_NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Number = int | float | bool


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array of the metadata: its length always, its numbers only if there are few (None otherwise)."""

    length: int
    values: tuple[Number, ...] | None


@dataclass(frozen=True, slots=True)
class SkippedText:
    """A text of the metadata that is too long to keep."""

    length: int


GgufValue = Number | str | GgufArray | SkippedText


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor by name; `dims` innermost first, `offset` from the start of the data."""

    name: str
    dims: tuple[int, ...]
    type: GgmlType
    offset: int
    elements: int

    @property
    def n_bytes(self) -> int:
        """Size of its data in the file."""
        return self.elements // self.type.block_elements * self.type.block_bytes


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Everything before the data of one file, or of all parts of a split one."""

    source_name: str
    version: int
    metadata: Mapping[str, GgufValue]
    tensors: tuple[TensorInfo, ...]
    file_bytes: int


def read_gguf(source: ByteSource) -> GgufHeader:
    """Read the header.

    Raises NotAModelFile if it is not GGUF, UnsupportedModelFile on a version or byte order that
    llama.cpp does not read here, CorruptModelFile on anything damaged.
    """
    cursor = _Cursor(source)
    version = _read_version(cursor)
    n_tensors = cursor.count("tensors", _MAX_TENSORS, least_bytes=24)
    n_keys = cursor.count("metadata keys", _MAX_KEYS, least_bytes=13)
    metadata = _read_metadata(cursor, n_keys)
    alignment = _alignment(cursor, metadata)
    tensors = _read_tensors(cursor, n_tensors, alignment)
    _check_length(cursor, tensors, alignment)
    return GgufHeader(source.name, version, metadata, tensors, source.size)


def _read_version(cursor: _Cursor) -> int:
    if cursor.source.read_at(0, 4) != b"GGUF":
        what, hint = describe_magic(cursor.source.read_at(0, 512))
        raise NotAModelFile(f"{cursor.source.name} is not a GGUF file: it is {what}", hint=hint)
    cursor.skip(4)
    version = cursor.uint32("the version")
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0:
        raise UnsupportedModelFile(
            f"{cursor.source.name} is a big-endian GGUF file",
            hint="Convert it with llama.cpp's gguf_convert_endian.py, or download the little-endian file.",
        )
    if version == 1:
        raise UnsupportedModelFile(
            f"{cursor.source.name} is GGUF version 1, which llama.cpp stopped reading in 2023",
            hint="Download a newer conversion of this model.",
        )
    raise UnsupportedModelFile(
        f"{cursor.source.name} is GGUF version {version}; versions 2 and 3 are known",
        hint="Update Cotenant, or check that the file is whole.",
    )


def _read_metadata(cursor: _Cursor, n_keys: int) -> dict[str, GgufValue]:
    metadata: dict[str, GgufValue] = {}
    for _ in range(n_keys):
        key = cursor.name("a metadata key", _MAX_KEY)
        if key in metadata:
            cursor.fail(f"the metadata key {key!r} twice")
        kind = cursor.uint32(f"the type of {key}")
        if kind == _ARRAY:
            metadata[key] = _read_array(cursor, key)
        elif kind == _STRING:
            metadata[key] = cursor.text(key)
        elif kind in _NUMBERS:
            (metadata[key],) = cursor.numbers(_NUMBERS[kind], 1, key)
        else:
            cursor.fail(f"{key} with the unknown value type {kind}")
    return metadata


def _read_array(cursor: _Cursor, key: str) -> GgufArray:
    kind = cursor.uint32(f"the element type of {key}")
    length = cursor.uint64(f"the length of {key}")
    if kind == _STRING:
        cursor.skip_texts(length, key)
        return GgufArray(length, None)
    if kind not in _NUMBERS:
        nested = "an array of arrays" if kind == _ARRAY else f"an array of the unknown value type {kind}"
        cursor.fail(f"{key} as {nested}")
    if length <= min(_KEPT_ELEMENTS, cursor.numbers_left):
        cursor.numbers_left -= length
        return GgufArray(length, cursor.numbers(_NUMBERS[kind], length, key))
    n_bytes = length * struct.calcsize("<" + _NUMBERS[kind])
    cursor.need(n_bytes, f"{length} elements of {key}")
    cursor.skip(n_bytes)
    return GgufArray(length, None)


def _alignment(cursor: _Cursor, metadata: Mapping[str, GgufValue]) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or value <= 0 or value & (value - 1):
        cursor.fail(f"the alignment {value}, which is no power of two")
    return value


def _read_tensors(cursor: _Cursor, n_tensors: int, alignment: int) -> tuple[TensorInfo, ...]:
    tensors: dict[str, TensorInfo] = {}
    expected = 0
    for _ in range(n_tensors):
        tensor = _read_tensor(cursor)
        if tensor.name in tensors:
            cursor.fail(f"the tensor {tensor.name!r} twice")
        if tensor.offset != expected:
            why = "overlaps the one before it" if tensor.offset < expected else "leaves a gap"
            cursor.fail(f"tensor {tensor.name} at offset {tensor.offset}, which {why}: {expected} is due")
        expected = _padded(expected + tensor.n_bytes, alignment)
        tensors[tensor.name] = tensor
    return tuple(tensors.values())


def _read_tensor(cursor: _Cursor) -> TensorInfo:
    name = cursor.name("a tensor name", _MAX_TENSOR_NAME)
    n_dims = cursor.uint32(f"the rank of {name}")
    if n_dims > _MAX_DIMS:
        cursor.fail(f"tensor {name} with {n_dims} dimensions; {_MAX_DIMS} is the most")
    dims = tuple(int(dim) for dim in cursor.numbers("Q", n_dims, name))
    elements = math.prod(dims)
    if not 0 < elements <= _MAX_ELEMENTS:
        cursor.fail(f"tensor {name} of the impossible size {' × '.join(map(str, dims))}")
    type_id = cursor.uint32(f"the type of {name}")
    kind = GGML_TYPES.get(type_id)
    if kind is None:
        raise UnsupportedModelFile(
            f"{cursor.source.name} stores tensor {name} as ggml type {type_id}, which is unknown",
            hint="The type may be newer than this version, or long removed: try another quantisation.",
        )
    if (dims[0] if dims else 1) % kind.block_elements:
        cursor.fail(f"tensor {name} with rows of {dims[0] if dims else 1} in blocks of {kind.block_elements}")
    return TensorInfo(name, dims, kind, cursor.uint64(f"the offset of {name}"), elements)


def _check_length(cursor: _Cursor, tensors: tuple[TensorInfo, ...], alignment: int) -> None:
    if not tensors:
        return
    data = _padded(cursor.position, alignment)
    needed = data + tensors[-1].offset + tensors[-1].n_bytes
    missing = needed - cursor.source.size
    if missing > 0:
        raise CorruptModelFile(
            f"{cursor.source.name} is cut off: {format_bytes(missing)} of {format_bytes(needed)} are missing",
            hint="The download is incomplete: fetch the file again.",
        )


def _padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


class _Cursor:
    """Reads a source forwards, one window at a time; every error names file, field and offset."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self._window = b""
        self._start = 0
        self._at = 0
        self._text_left = _KEPT_TEXT
        self.numbers_left = _KEPT_NUMBERS

    @property
    def position(self) -> int:
        return self._start + self._at

    def fail(self, what: str) -> NoReturn:
        """Raise CorruptModelFile: the header declares `what`."""
        raise CorruptModelFile(
            f"{self.source.name} is damaged: it declares {what} (at byte {self.position})",
            hint="Fetch the file again, or convert it again.",
        )

    def need(self, n: int, what: str) -> None:
        """Raise CorruptModelFile unless `n` more bytes can be part of the header."""
        if self.position + n > self.source.size:
            raise CorruptModelFile(
                f"{self.source.name} ends inside its header: {what} at byte {self.position} would need {n} "
                f"bytes, {self.source.size - self.position} are left",
                hint="The download is incomplete or the file is damaged: fetch it again.",
            )
        if self.position + n > HEADER_LIMIT:
            self.fail(f"a header of more than {HEADER_LIMIT >> 20} MiB")

    def skip(self, n: int) -> None:
        self._at += n

    def count(self, what: str, most: int, *, least_bytes: int) -> int:
        """Read how many `what` follow; each takes `least_bytes` or more."""
        number = self.uint64(f"the number of {what}")
        if number > most:
            self.fail(f"{number} {what}; {most} is the most")
        self.need(number * least_bytes, f"{number} {what}")
        return number

    def uint32(self, what: str) -> int:
        return int(_TYPE.unpack(self._take(4, what))[0])

    def uint64(self, what: str) -> int:
        return int(_LENGTH.unpack(self._take(8, what))[0])

    def numbers(self, code: str, count: int, what: str) -> tuple[Number, ...]:
        layout = struct.Struct(f"<{count}{code}")
        return layout.unpack(self._take(layout.size, what))

    def name(self, what: str, longest: int) -> str:
        """Read a name: a short, non-empty UTF-8 text."""
        length = self.uint64(f"the length of {what}")
        if not 0 < length <= longest:
            self.fail(f"{what} of {length} bytes")
        data = self._take(length, what)
        try:
            name = data.decode()
        except UnicodeDecodeError:
            self.fail(f"{what} that is not UTF-8 ({data[:32]!r})")
        if not name.isprintable():
            self.fail(f"{what} with control characters ({data[:32]!r})")
        return name

    def text(self, key: str) -> str | SkippedText:
        """Read a text value; bad UTF-8 is replaced, as nothing depends on it."""
        length = self.uint64(f"the length of {key}")
        self.need(length, key)
        if length > self._text_left:
            self.skip(length)
            return SkippedText(length)
        self._text_left -= length
        return self._take(length, key).decode(errors="replace")

    def skip_texts(self, count: int, key: str) -> None:
        """Skip `count` texts; vocabularies have hundreds of thousands, so the loop is minimal."""
        self.need(8 * count, f"{count} texts of {key}")
        length_at = _LENGTH.unpack_from
        left = count
        while left:
            self.need(8, f"a text of {key}")
            self._refill(8)
            window, at = self._window, self._at
            try:
                while left:
                    at += 8 + length_at(window, at)[0]
                    left -= 1
            except (struct.error, OverflowError):  # the window ends here
                if at == self._at:
                    self.fail(f"a text of {key}, but the file became shorter while it was read")
            self._at = at
        self.need(0, f"the texts of {key}")

    def _take(self, n: int, what: str) -> bytes:
        self.need(n, what)
        self._refill(n)
        data = self._window[self._at : self._at + n]
        if len(data) < n:
            self.fail(f"{what}, but the file became shorter while it was read")
        self._at += n
        return data

    def _refill(self, n: int) -> None:
        if self._at + n > len(self._window):
            self._start += self._at
            self._at = 0
            self._window = self.source.read_at(self._start, max(n, _WINDOW))
