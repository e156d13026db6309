"""A port that is reserved before an engine listens on it."""

import os
import socket
from typing import Final, Self

LOOPBACK: Final = "127.0.0.1"


class ReservedPort:
    """A free port of the loopback address, held without listening until closed.

    The socket allows both kinds of sharing: current engines bind with SO_REUSEPORT, older ones with
    SO_REUSEADDR; both work while another socket is bound but does not listen. The kernel gives the number
    to no other process.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((LOOPBACK, 0))
        self.number: int = self._socket.getsockname()[1]

    def admit(self, uid: int) -> None:
        """Let engines of another user listen on it: the kernel shares a port among sockets of one owner."""
        os.fchown(self._socket.fileno(), uid, -1)

    def close(self) -> None:
        """Release the port."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
