"""Who listens on a port of this machine, from the kernel's own tables."""

import atexit
import contextlib
import errno
import functools
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

from cotenant.domain.engines import Endpoint

_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTEN: Final = 10
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST: Final = 1
_NLM_F_DUMP: Final = 0x300
_NO_COOKIE: Final = b"\xff" * 8
_HEADER: Final = struct.Struct("=IHHII")
# Family, protocol, extensions, padding, states; then the ports, addresses, interface and cookie of a socket.
_QUESTION: Final = struct.Struct("=BBBxI 2s2s 16s16s I 8s")
_ANSWERED_PORT: Final = _HEADER.size + 4
_ANSWERED_UID: Final = _ANSWERED_PORT + 48 + 12
_ANSWERED_INODE: Final = _ANSWERED_UID + 4
"""Where `idiag_inode` is in the answer: after the header, four bytes, the socket and four numbers."""


class PortTaken(ConnectionError):
    """Another process listens where the engine did."""


def verify_listener(endpoint: Endpoint) -> None:
    """Check, once connected, that it is the engine which listens. Raises PortTaken.

    An engine's socket that still listens has done so since the check before, so the connection is to it.
    """
    if endpoint.listeners and listener_inode(endpoint.host, endpoint.port) not in endpoint.listeners:
        raise PortTaken("another process has its port")


def listener_inode(host: str, port: int) -> int | None:
    """Return the inode of the socket to which the kernel connects; None if nothing listens.

    It takes 10 µs by netlink; where that is not available, it reads the table of all sockets.
    """
    netlink = _netlink()
    if netlink is not None:
        address = socket.inet_aton(host).ljust(16, b"\0")
        question = _question(socket.AF_INET, port, address, _NLM_F_REQUEST)
        try:
            netlink.send(question)
            answer = netlink.recv(4096)
        except OSError:
            netlink.close()
            _netlink.cache_clear()
        else:
            kind = _HEADER.unpack_from(answer)[1]
            if kind == _SOCK_DIAG_BY_FAMILY:
                return int.from_bytes(answer[_ANSWERED_INODE : _ANSWERED_INODE + 4], "little")
            code = int.from_bytes(answer[_HEADER.size : _HEADER.size + 4], "little", signed=True)
            if kind == _NLMSG_ERROR and code == -errno.ENOENT:
                return None
    return next((inode for inode, _ in listening_sockets(port)), None)


def listening_sockets(port: int) -> Iterator[tuple[int, int]]:
    """Yield the inode and the user of each socket that listens on a port, at whatever address.

    By netlink the kernel looks at what listens; the tables, without it, have all connections of the machine.
    """
    found = _dumped(port)
    if found is not None:
        yield from found
        return
    wanted = f":{port:04X}"
    for table in _TABLES:
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file]
        except OSError:
            continue
        for row in rows[1:]:
            if row[1].endswith(wanted) and int(row[3], 16) == _LISTEN:
                yield int(row[9]), int(row[7])


def has_socket(pid: int, inode: int, uid: int) -> bool:
    """Whether a process has a socket; of one that may not be looked into, its user must be the socket's."""
    link, folder = f"socket:[{inode}]", f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        try:
            descriptors = os.listdir(folder)
        except PermissionError:
            return os.stat(f"/proc/{pid}").st_uid == uid
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{descriptor}") == link:
                    return True
    return False


def _question(family: int, port: int, address: bytes, flags: int) -> bytes:
    """Ask for the sockets that listen; a dump of them regards neither port nor address."""
    question = _QUESTION.pack(
        family,
        socket.IPPROTO_TCP,
        0,
        1 << _LISTEN,
        port.to_bytes(2, "big"),
        b"\0\0",
        address,
        b"\0" * 16,
        0,
        _NO_COOKIE,
    )
    return _HEADER.pack(_HEADER.size + len(question), _SOCK_DIAG_BY_FAMILY, flags, 0, 0) + question


def _dumped(port: int) -> list[tuple[int, int]] | None:
    """Return what listens on a port by netlink, on a socket of its own, for any thread; None without it."""
    if _netlink() is None:
        return None
    found = []
    try:
        with _opened() as netlink:
            for family in (socket.AF_INET, socket.AF_INET6):
                netlink.send(_question(family, 0, b"\0" * 16, _NLM_F_REQUEST | _NLM_F_DUMP))
                for message in _messages(netlink):
                    if int.from_bytes(message[_ANSWERED_PORT : _ANSWERED_PORT + 2], "big") == port:
                        uid, inode = struct.unpack_from("=II", message, _ANSWERED_UID)
                        found.append((inode, uid))
    except OSError:
        return None
    return found


def _messages(netlink: socket.socket) -> Iterator[bytes]:
    """Yield the messages of a dump, to its end. Raises OSError."""
    while True:
        answer = netlink.recv(1 << 16)
        while answer:
            length, kind, *_ = _HEADER.unpack_from(answer)
            if kind == _NLMSG_ERROR:
                raise OSError("the kernel does not list sockets")
            if kind != _SOCK_DIAG_BY_FAMILY:
                return
            yield answer[:length]
            answer = answer[length + -length % 4 :]


@functools.cache
def _netlink() -> socket.socket | None:
    try:
        netlink = _opened()
    except (AttributeError, OSError):
        return None
    atexit.register(netlink.close)
    return netlink


def _opened() -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    netlink.settimeout(1.0)
    return netlink
