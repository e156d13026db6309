"""Reports the daemon's state to systemd (the protocol of sd_notify(3)), if systemd started it."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

_LOG = logging.getLogger(__name__)
_OURS: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """Sends states to the service manager that started this process; without one it does nothing.

    The variables for this process alone are read and removed from `environment`, so that no engine inherits
    them and speaks for the daemon.
    """

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        address, period_us, pid = (environment.pop(name, "") for name in _OURS)
        # A leading @ means the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        meant = not pid or pid == str(os.getpid())
        self.watchdog_s: float | None = (
            int(period_us) / 1_000_000 if meant and period_us.isdecimal() and int(period_us) else None
        )

    def ready(self, status: str) -> None:
        """Report that requests are answered from now on."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """Report that the daemon is ending."""
        self._send("STOPPING=1\nSTATUS=Requests in flight are being answered")

    def reloading(self) -> None:
        """Report that the configuration is being read again; `ready` ends this state."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    async def keep_alive(self) -> None:
        """Report periodically that the event loop is alive, if systemd wants it, until cancelled."""
        while self.watchdog_s is not None:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 3)

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(state.encode(), self._address)
        except OSError as error:
            _LOG.warning("%r could not be sent to systemd: %s", state.partition("\n")[0], error)
