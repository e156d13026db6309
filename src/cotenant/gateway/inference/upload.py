"""Bodies with files: kept on disk until a lease is granted, so that they take neither memory nor a slot."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from cotenant.asgi import Header, Receive
from cotenant.domain.errors import BadRequest, NoRoomOnDisk, UnsupportedMediaType
from cotenant.domain.units import KIB
from cotenant.gateway.http.limits import Limits
from cotenant.gateway.inference.form import FormScanner, boundary_in

_PIECE_BYTES: Final = 256 * KIB

T = TypeVar("T")


class Upload:
    """A body with files, kept in a file without a name; a small one is kept in memory.

    `digest` stands for it where requests are compared. `form` found the fields in it, None for a body that is
    not read and whose `model` is known. The caller closes it.
    """

    def __init__(self, limits: Limits, form: FormScanner | None = None, model: str | None = None) -> None:
        self.form = form
        self._model = model
        self.size = 0
        self._limits = limits
        self._held = 0
        self._hash = hashlib.sha256()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._file: IO[bytes] | None = None

    @property
    def digest(self) -> bytes:
        """What the body is known by."""
        return self._hash.digest()

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that concern the gateway."""
        return {"model": self._model} if self.form is None else dict(self.form.fields)

    async def receive(self, receive: Receive) -> bool:
        """Read the whole body; False if the client disconnects.

        Raises BadRequest, RequestTooLarge, QueueFull or NoRoomOnDisk.
        """
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            piece: bytes = message.get("body", b"")
            self._hold(self.size + len(piece))
            self._pending.append(piece)
            self._pending_bytes += len(piece)
            more = message.get("more_body", False)
            if self._pending_bytes > _PIECE_BYTES:
                await self._threaded(self._take)
        if self._file is None:
            self._read(b"".join(self._pending))
        else:
            await self._threaded(self._take)
        if self.form is not None and not self.form.closed:
            raise BadRequest("the form ends before its last boundary")
        return True

    def named(self, model: str | None) -> tuple[int, Callable[[], AsyncIterator[bytes]]]:
        """Return the length and the pieces of the body with another value of `model`, None for its own."""
        start, end, new = 0, 0, b""
        if model is not None and self.form is not None and model != self.form.fields.get("model"):
            new = model.encode()
            if self.form.model_span is not None:
                start, end = self.form.model_span
            else:
                start = end = self.form.first_at or 0
                disposition = b'Content-Disposition: form-data; name="model"'
                new = b"--%b\r\n%b\r\n\r\n%b\r\n" % (self.form.boundary, disposition, new)

        async def pieces() -> AsyncIterator[bytes]:
            async for piece in self._between(0, start):
                yield piece
            yield new
            async for piece in self._between(end, self.size):
                yield piece

        return self.size - (end - start) + len(new), pieces

    def close(self) -> None:
        """Delete the body."""
        self._limits.uploads.release(self._held)
        self._held = 0
        self._pending.clear()
        if self._file is not None:
            self._file.close()

    def _hold(self, size: int) -> None:
        self._limits.check_upload(size)
        self._limits.uploads.release(self._held)
        self._held = 0
        self._limits.uploads.hold(size)
        self._held = self.size = size

    def _take(self) -> None:
        """Write what is pending; in a thread, since a disk may be slow."""
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        if self._file is None:
            self._file = _unnamed_file(self._limits.upload_folder)
        self._file.write(data)
        self._read(data)

    def _read(self, data: bytes) -> None:
        self._hash.update(data)
        if self.form is not None:
            self.form.feed(data)

    async def _between(self, start: int, end: int) -> AsyncIterator[bytes]:
        if self._file is None:
            yield b"".join(self._pending)[start:end]
            return
        while start < end:
            piece = await self._threaded(self._piece, start, min(_PIECE_BYTES, end - start))
            start += len(piece)
            yield piece

    def _piece(self, start: int, n: int) -> bytes:
        if self._file is None:
            return b""
        self._file.seek(start)
        piece = self._file.read(n)
        if not piece:
            raise OSError("the file is shorter than it was")
        return piece

    async def _threaded(self, call: Callable[..., T], *arguments: int) -> T:
        try:
            return await asyncio.to_thread(call, *arguments)
        except OSError as error:
            raise NoRoomOnDisk(
                f"the body cannot be kept on disk: {error.strerror or error}",
                hint="The daemon's operator must make room in its state folder.",
            ) from error


def _unnamed_file(folder: Path | None) -> IO[bytes]:
    """Create a file that ends with the daemon: in the state folder, else where the system has such files."""
    if folder is not None:
        with suppress(OSError):
            return tempfile.TemporaryFile(dir=folder)
    return tempfile.TemporaryFile()


def upload_of(headers: Sequence[Header], limits: Limits, passed_to: str | None) -> Upload | None:
    """Return where a body is kept that is form data or is passed to a model, None for any other.

    Raises BadRequest or UnsupportedMediaType.
    """
    if passed_to is not None:
        return Upload(limits, model=passed_to)
    named = dict(headers)
    boundary = boundary_in(named.get(b"content-type", b""))
    if boundary is None:
        return None
    if named.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise UnsupportedMediaType("a form with files cannot be compressed", hint="Send it uncompressed.")
    return Upload(limits, FormScanner(boundary))
