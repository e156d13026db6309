"""Frames of WebSocket (RFC 6455, 5.2): where they begin, and the one that closes."""

from typing import Final

_CLOSE: Final = 0x8
_MOST_REASON_BYTES: Final = 123
_EXTENDED_BYTES: Final = {126: 2, 127: 8}


class Frames:
    """Follows a stream of frames (RFC 6455, 5.2): whether one begins next, and whether one was a close."""

    def __init__(self) -> None:
        self.is_closing = False
        self._head = bytearray()
        self._left = 0

    @property
    def at_boundary(self) -> bool:
        """Whether what comes next begins a frame."""
        return not self._head and not self._left

    def feed(self, data: bytes) -> None:
        """Follow further bytes."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            self._head.append(data[at])
            at += 1
            if len(self._head) > 1:
                self._read_head()

    def _read_head(self) -> None:
        short = self._head[1] & 0x7F
        extended = _EXTENDED_BYTES.get(short, 0)
        masked = bool(self._head[1] & 0x80)
        if len(self._head) < 2 + extended + 4 * masked:
            return
        self._left = int.from_bytes(self._head[2 : 2 + extended]) if extended else short
        self.is_closing |= self._head[0] & 0x0F == _CLOSE
        self._head.clear()


def close_frame(code: int, reason: str) -> bytes:
    """Return the frame by which a server closes; a long reason is cut."""
    text = reason.encode()[:_MOST_REASON_BYTES].decode(errors="ignore").encode()
    payload = code.to_bytes(2) + text
    return bytes([0x80 | _CLOSE, len(payload)]) + payload
