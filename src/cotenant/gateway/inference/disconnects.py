"""Which requests listen for their client's disconnect."""

import asyncio
from typing import Final, Protocol


class Listening(Protocol):
    """A request that can listen for its client's disconnect."""

    def listen(self) -> None:
        """Watch from now on for the client's disconnect."""


class DisconnectWatch:
    """Calls `listen` on requests that last longer than the interval, with one timer for all.

    Most responses are complete sooner and need no task that listens; engines do not free a slot faster.
    """

    _INTERVAL_S: Final = 0.1

    def __init__(self) -> None:
        self._new: set[Listening] = set()
        self._armed = False

    def enter(self, request: Listening) -> None:
        """Call `listen` on the request after the interval."""
        self._new.add(request)
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_later(self._INTERVAL_S, self._listen)

    def leave(self, request: Listening) -> None:
        """Forget a request that has ended."""
        self._new.discard(request)

    def _listen(self) -> None:
        self._armed = False
        for request in self._new:
            request.listen()
        self._new.clear()
