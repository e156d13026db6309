"""Headers of model files on other machines: uploaded once, and kept for several plans."""

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.analysis.gguf import HEADER_LIMIT, GgufHeader, read_gguf
from cotenant.analysis.shape import model_shape
from cotenant.analysis.split_files import join_parts
from cotenant.clock import Clock
from cotenant.domain.errors import (
    BadRequest,
    CorruptModelFile,
    HeaderGone,
    HeaderIncomplete,
    SplitPartMissing,
    UnsupportedModelFile,
)
from cotenant.domain.models import ModelKind, ModelShape
from cotenant.domain.units import MIB, format_bytes

_MAX_HEADERS: Final = 64
_LIFETIME_S: Final = 1800.0


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


class Headers:
    """The last 64 headers, each for half an hour after it was last used."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, tuple[SentHeader, float]] = OrderedDict()

    def keep(self, sent: SentHeader) -> None:
        """Keep a header; the least recently used one is dropped if there are too many."""
        self._kept[sent.id] = sent, self._clock.now()
        while len(self._kept) > _MAX_HEADERS:
            self._kept.popitem(last=False)

    def find(self, id_: str) -> SentHeader:
        """Return a header that is kept. Raises HeaderGone."""
        now = self._clock.now()
        found = self._kept.pop(id_, None)
        if found is None or now - found[1] > _LIFETIME_S:
            raise HeaderGone(
                f"there is no header {id_!r}, or it has expired", hint="Send the beginning of the file again."
            )
        self._kept[id_] = found[0], now
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
    part, parts = _number(header, "split.no", 0) + 1, _number(header, "split.count", 1)
    kind = architecture = None
    if part == 1:
        shape = model_shape(header) if parts <= 1 else None
        kind = shape.kind if shape else None
        named = header.metadata.get("general.architecture")
        architecture = named if isinstance(named, str) else None
    return SentHeader(secrets.token_urlsafe(12), name, header, part, max(1, parts), kind, architecture)


def join_headers(sent: Sequence[SentHeader]) -> tuple[str, ModelShape, int]:
    """Combine the headers of a model's parts and its projector. Raises ModelFileError.

    Returns the model's name, its shape, and the bytes of its projector if it has one.
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
    missing = sorted({*range(1, first.parts + 1)} - {each.part for each in parts})
    if missing:
        raise SplitPartMissing(
            f"{first.name} is one of {first.parts} parts, and part {missing[0]} is missing",
            hint="Choose all parts together.",
        )
    if len(parts) > first.parts:
        raise UnsupportedModelFile(
            f"{parts[-1].name} belongs to another model than {first.name}", hint="Choose one model's files."
        )
    shape = model_shape(join_parts([each.header for each in parts]))
    projector = sum(model_shape(each.header).tensor_bytes for each in projectors)
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


def _number(header: GgufHeader, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    return value if isinstance(value, int) else default
