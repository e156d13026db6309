"""Compressed bodies of requests, which some clients send once a conversation is long."""

import codecs
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

from cotenant.asgi import Header
from cotenant.domain.errors import BadRequest, UnsupportedMediaType
from cotenant.gateway.http.limits import Limits

_GZIP: Final = 16 + zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
_CODINGS: Final[Mapping[str, int]] = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": zlib.MAX_WBITS}
_MOST: Final = 2
_MOST_MEMBERS: Final = 64
_ZLIB: Final = 8
"""The low bits of the first byte of a zlib stream; some clients send `deflate` without that frame."""


def decoded(body: bytes, headers: Sequence[Header], limits: Limits) -> bytes:
    """Return a body without its codings, and without the byte order mark that some tools of Windows write.

    Raises UnsupportedMediaType for an unknown coding, BadRequest for a body that is not in it, and
    RequestTooLarge before more than the limit is expanded.
    """
    for name, value in headers:
        if name in (b"content-encoding", b"transfer-encoding"):
            codings = [coding.strip().lower() for coding in value.decode("latin-1").split(",")]
            if len(codings) > _MOST:
                raise UnsupportedMediaType("the body is compressed too many times", hint="Compress it once.")
            for coding in reversed(codings):
                body = _decoded(body, coding, limits)
    return body.removeprefix(codecs.BOM_UTF8)


def _decoded(body: bytes, coding: str, limits: Limits) -> bytes:
    if coding in ("identity", "chunked", "") or not body:
        return body
    if coding not in _CODINGS:
        raise UnsupportedMediaType(
            f"the body is compressed as {coding[:40]!r}, which is not supported",
            hint="Send it as gzip or deflate, or uncompressed.",
        )
    bits = _CODINGS[coding]
    if bits == zlib.MAX_WBITS and body[0] & 15 != _ZLIB:
        bits = _RAW
    pieces: list[bytes] = []
    size = 0
    try:
        while body:
            # A body may have a few members, one after the other; each costs a copy of the rest.
            if len(pieces) == _MOST_MEMBERS:
                raise zlib.error("it has too many members")
            member = zlib.decompressobj(bits)
            pieces.append(member.decompress(body, limits.body_bytes + 1 - size))
            size += len(pieces[-1])
            limits.check_body(size)
            if not member.eof:
                raise zlib.error("it ends early")
            body = member.unused_data
    except zlib.error as error:
        raise BadRequest(f"the body is not {coding}: {error}", hint="Send it uncompressed.") from None
    return b"".join(pieces)
