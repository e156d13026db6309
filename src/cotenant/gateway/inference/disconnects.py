"""Which clients must be listened to for their departure."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol


class Listener(Protocol):
    """A request whose client may leave."""

    def listen(self) -> None:
        """Notice from now on when the client leaves."""
        ...


class DisconnectWatch:
    """Has requests listen for their clients' departure once they last, on one timer for all.

    Most answers come sooner, and are spared the task that listening takes; an engine frees a slot no faster.
    """

    _INTERVAL_S: Final = 0.1

    def __init__(self) -> None:
        self._unheard: set[Listener] = set()
        self._armed = False

    def enter(self, request: Listener) -> None:
        """Have it listen in a moment."""
        self._unheard.add(request)
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_later(self._INTERVAL_S, self._turn)

    def leave(self, request: Listener) -> None:
        """Forget one that has ended."""
        self._unheard.discard(request)

    def _turn(self) -> None:
        self._armed = False
        for request in self._unheard:
            request.listen()
        self._unheard.clear()
