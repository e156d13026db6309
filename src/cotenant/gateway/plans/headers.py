"""Headers of model files on other machines: uploaded once, and kept for several plans."""

import secrets
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.analysis.gguf import HEADER_LIMIT, GgufArray, GgufHeader, read_gguf
from cotenant.analysis.shape import model_shape
from cotenant.analysis.split_files import join_parts, part_of
from cotenant.clock import Clock
from cotenant.domain.errors import (
    BadRequest,
    CorruptModelFile,
    HeaderGone,
    HeaderIncomplete,
    SplitPartMissing,
    UnsupportedModelFile,
)
from cotenant.domain.models import ModelKind, ModelShape, Projector
from cotenant.domain.units import MIB, format_bytes

_MAX_KEPT_BYTES: Final = 256 * MIB
_LIFETIME_S: Final = 1800.0
_TENSOR_BYTES: Final = 500
_KEY_BYTES: Final = 200
_NUMBER_BYTES: Final = 40
"""Bytes of memory that an object of a parsed header takes in CPython, a name of usual length included."""


@dataclass(frozen=True, slots=True)
class SentHeader:
    """A header that was parsed; `part` is its number in the model's `parts` files, from 1."""

    id: str
    name: str
    header: GgufHeader
    part: int
    parts: int
    kind: ModelKind | None
    architecture: str | None

    @property
    def kept_bytes(self) -> int:
        """About how much memory it takes: many times its length in the file."""
        size = _TENSOR_BYTES * len(self.header.tensors)
        for key, value in self.header.metadata.items():
            size += _KEY_BYTES + sys.getsizeof(key) + sys.getsizeof(value)
            if isinstance(value, GgufArray) and value.values is not None:
                size += _NUMBER_BYTES * len(value.values)
        return size


class Headers:
    """The last headers that fit in `most_bytes`, each for half an hour after it was last used."""

    def __init__(self, clock: Clock, most_bytes: int = _MAX_KEPT_BYTES) -> None:
        self._clock = clock
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, tuple[SentHeader, float]] = OrderedDict()
        self._kept_bytes = 0

    def keep(self, sent: SentHeader) -> None:
        """Keep a header; those least recently used are dropped for it, and those that have expired."""
        now = self._clock.now()
        self._kept[sent.id] = sent, now
        self._kept_bytes += sent.kept_bytes
        while len(self._kept) > 1 and (self._kept_bytes > self._most_bytes or self._is_expired(now)):
            _, (dropped, _) = self._kept.popitem(last=False)
            self._kept_bytes -= dropped.kept_bytes

    def _is_expired(self, now: float) -> bool:
        """Whether the least recently used header has expired."""
        return now - next(iter(self._kept.values()))[1] > _LIFETIME_S

    def find(self, id_: str) -> SentHeader:
        """Return a header that is kept. Raises HeaderGone."""
        now = self._clock.now()
        found = self._kept.get(id_)
        if found is None or now - found[1] > _LIFETIME_S:
            raise HeaderGone(
                f"there is no header {id_!r}, or it has expired", hint="Send the beginning of the file again."
            )
        self._kept[id_] = found[0], now
        self._kept.move_to_end(id_)
        return found[0]


def read_header(name: str, file_bytes: int, first: bytes) -> SentHeader:
    """Parse the beginning of a file.

    Raises HeaderIncomplete, which says how much to send, and ModelFileError for an invalid header.
    """
    if file_bytes < len(first):
        raise BadRequest(
            f"size={file_bytes} is less than the {len(first)} bytes that were sent",
            hint="Give the whole file's size.",
        )
    source = _Beginning(name, file_bytes, first)
    try:
        header = read_gguf(source)
    except CorruptModelFile:
        if source.wanted_bytes <= len(first) or len(first) >= HEADER_LIMIT:
            raise
        needed = min(file_bytes, max(source.wanted_bytes, 2 * len(first), MIB))
        raise HeaderIncomplete(
            f"the header of {name} is longer than the first {format_bytes(len(first))}",
            hint=f"Send the first {needed} bytes.",
            needed_bytes=needed,
        ) from None
    part, parts = part_of(header)
    kind = architecture = None
    if part == 1:
        shape = model_shape(header) if parts == 1 else None
        kind = shape.kind if shape else None
        named = header.metadata.get("general.architecture")
        architecture = named if isinstance(named, str) else None
    return SentHeader(secrets.token_urlsafe(12), name, header, part, parts, kind, architecture)


def join_headers(sent: Sequence[SentHeader]) -> tuple[str, ModelShape, Projector | None]:
    """Combine the headers of a model's parts and its projector. Raises ModelFileError.

    Returns the model's name, its shape, and its projector if it has one.
    """
    projectors = [each for each in sent if each.kind is ModelKind.PROJECTOR]
    parts = sorted((each for each in sent if each not in projectors), key=lambda each: each.part)
    if not parts:
        raise UnsupportedModelFile(
            f"{sent[0].name} is a vision projector, not a model",
            hint="Choose the model that it belongs to, too.",
        )
    if len(projectors) > 1:
        raise UnsupportedModelFile("there is more than one vision projector", hint="Choose one.")
    first = parts[0]
    sent_parts = {each.part for each in parts}
    missing = next((number for number in range(1, first.parts + 1) if number not in sent_parts), None)
    if missing is not None:
        raise SplitPartMissing(
            f"{first.name} is one of {first.parts} parts, and part {missing} is missing",
            hint="Choose all parts together.",
        )
    if len(parts) > first.parts:
        raise UnsupportedModelFile(
            f"{parts[-1].name} belongs to another model than {first.name}", hint="Choose one model's files."
        )
    shape = model_shape(join_parts([each.header for each in parts]))
    projector = model_shape(projectors[0].header).projector if projectors else None
    return first.name.removesuffix(".gguf"), shape, projector


@dataclass
class _Beginning:
    """The first bytes of a file, as a ByteSource that records how many bytes its reader needed."""

    name: str
    size: int
    _first: bytes
    wanted_bytes: int = 0

    def read_at(self, offset: int, n: int) -> bytes:
        """Return those of these bytes that were sent."""
        self.wanted_bytes = max(self.wanted_bytes, min(self.size, offset + n))
        return self._first[offset : offset + n]
