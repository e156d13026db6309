"""Finds fields of multipart form data as it arrives, without keeping its files."""

import re
from email.message import Message
from typing import Final

from cotenant.domain.errors import BadRequest
from cotenant.domain.units import KIB

_FIELDS: Final = frozenset({"model", "stream"})
_MAX_VALUE_BYTES: Final = KIB
_MAX_HEAD_BYTES: Final = 16 * KIB
_MAX_BOUNDARY: Final = 200
_HEAD_END: Final = b"\r\n\r\n"


class FormScanner:
    """Reads form data (RFC 7578) piece by piece: `fields` are those that concern the gateway.

    `model_span` is where the value of `model` begins and ends in the body, `first_at` where the first part
    begins, None until they are found; `closed` says that the last boundary was seen.
    """

    def __init__(self, boundary: bytes) -> None:
        self.boundary = boundary
        self.fields: dict[str, str] = {}
        self.model_span: tuple[int, int] | None = None
        self.first_at: int | None = None
        self.closed = False
        self._delimiter = b"\r\n--" + boundary
        # The first boundary need not follow a line.
        self._rest = b"\r\n"
        self._rest_at = -2
        self._in_head = False
        self._field: str | None = None

    def feed(self, piece: bytes) -> None:
        """Read the next piece. Raises BadRequest."""
        if self.closed:
            return
        self._rest += piece
        while not self.closed and (self._read_head() if self._in_head else self._read_value()):
            pass

    def _read_value(self) -> bool:
        """Read to the next boundary; False if it has not come yet."""
        end = self._rest.find(self._delimiter)
        if end < 0:
            if self._field is None:
                self._skip(max(0, len(self._rest) - len(self._delimiter)))
            elif len(self._rest) > _MAX_VALUE_BYTES + len(self._delimiter):
                raise _too_long(self._field)
            return False
        if self._field is not None:
            self._keep(self._field, self._rest[:end])
        if self.first_at is None:
            self.first_at = self._rest_at + end + 2
        self._skip(end + len(self._delimiter))
        self._in_head = True
        return True

    def _keep(self, field: str, value: bytes) -> None:
        if field in self.fields:
            raise BadRequest(f"the form has `{field}` twice", hint="Send it once.")
        if len(value) > _MAX_VALUE_BYTES:
            raise _too_long(field)
        try:
            self.fields[field] = value.decode()
        except UnicodeDecodeError:
            raise BadRequest(f"`{field}` of the form is not UTF-8") from None
        if field == "model":
            self.model_span = self._rest_at, self._rest_at + len(value)

    def _read_head(self) -> bool:
        """Read the headers of a part, or the mark of the last boundary; False if they are not complete."""
        if self._rest.startswith(b"--"):
            self.closed = True
            return False
        end = self._rest.find(_HEAD_END)
        if end > _MAX_HEAD_BYTES or (end < 0 and len(self._rest) > _MAX_HEAD_BYTES):
            raise BadRequest("the headers of a part of the form are too long")
        if end < 0:
            return False
        name = _field_name(self._rest[:end])
        self._field = name if name in _FIELDS else None
        self._skip(end + len(_HEAD_END))
        self._in_head = False
        return True

    def _skip(self, n: int) -> None:
        self._rest = self._rest[n:]
        self._rest_at += n


def boundary_in(content_type: bytes) -> bytes | None:
    """Return the boundary of multipart form data, None for another type of content. Raises BadRequest."""
    if not content_type.lower().lstrip().startswith(b"multipart/form-data"):
        return None
    boundary = _parameter(content_type, "boundary")
    if not boundary or len(boundary) > _MAX_BOUNDARY or re.search(r"[\r\n]", boundary):
        raise BadRequest("the form has no boundary", hint="Let the client set Content-Type by itself.")
    return boundary.encode("latin-1")


def _too_long(field: str) -> BadRequest:
    return BadRequest(f"`{field}` of the form is longer than {_MAX_VALUE_BYTES} bytes")


def _field_name(head: bytes) -> str | None:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return _parameter(value, "name")
    return None


def _parameter(value: bytes, name: str) -> str | None:
    header = Message()
    header["x"] = value.decode("latin-1").strip()
    found = header.get_param(name, header="x")
    return found if isinstance(found, str) else None
