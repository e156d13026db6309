"""A port that is reserved before an engine listens on it."""

import os
import socket
from typing import ClassVar, Final, Self

LOOPBACK: Final = "127.0.0.1"


class ReservedPort:
    """A free port of the loopback address, which no other engine of this process gets until it is closed.

    It is held without listening, and shared by SO_REUSEPORT alone: the kernel then gives it to no other user,
    while an engine that asks for the same can listen. One that does not can only get it once it is `let_go`;
    whoever is faster may then take it, so what listens is checked before anything is sent there.
    """

    _numbers: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        tried: list[socket.socket] = []
        while True:
            self._socket = socket.socket()
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind((LOOPBACK, 0))
            self.number: int = self._socket.getsockname()[1]
            if self.number not in self._numbers:
                break
            tried.append(self._socket)
        for each in tried:
            each.close()
        self._numbers.add(self.number)

    def admit(self, uid: int) -> None:
        """Let engines of another user listen on it: the kernel shares a port among sockets of one owner."""
        os.fchown(self._socket.fileno(), uid, -1)

    def let_go(self) -> None:
        """Hold it no longer, for a program that shares no port."""
        self._socket.close()

    def close(self) -> None:
        """Release the port."""
        self._socket.close()
        self._numbers.discard(self.number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
