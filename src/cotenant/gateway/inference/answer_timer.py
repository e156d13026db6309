"""Bounds on an answer: how long its engine may be silent, and how long it may take in whole."""

import asyncio
from typing import Final

from cotenant.domain.errors import AnswerTimeout
from cotenant.domain.units import format_duration
from cotenant.gateway.inference.engine_connections import EngineConnection
from cotenant.interfaces import Lease

_RECHECK_S: Final = 1.0


class AnswerTimer:
    """Cuts the `connection` of an answer that is late; `overdue` is then the error for the client.

    What counts is what the client gets: `heard_at` is when something was last sent to it, so an answer that
    is assembled for it must come whole within the time for silence. Time in which the client does not read is
    not the engine's. Bytes only move `heard_at`: one timer follows it, and starts when the request is no
    longer a short one.
    """

    __slots__ = ("_asked_at", "_handle", "_lease", "_loop", "_silence_s", "connection", "heard_at", "overdue")

    def __init__(self, loop: asyncio.AbstractEventLoop, lease: Lease, silence_s: float | None) -> None:
        """Bound the answer under a lease; `silence_s` replaces that of the lease."""
        self._loop = loop
        self._lease = lease
        self._silence_s = silence_s or lease.silence_s
        self._asked_at = self.heard_at = loop.time()
        self.connection: EngineConnection | None = None
        self._handle: asyncio.TimerHandle | None = None
        self.overdue: AnswerTimeout | None = None

    def start(self) -> None:
        """Begin to check."""
        if self._handle is None:
            self._check()

    def stop(self) -> None:
        """Check no more."""
        if self._handle is not None:
            self._handle.cancel()

    def _check(self) -> None:
        now, connection, answer_s = self._loop.time(), self.connection, self._lease.answer_s
        due = self.heard_at + self._silence_s
        if connection is None or not connection.awaited:
            due = max(due, now + _RECHECK_S)
        late = f"was silent for {format_duration(self._silence_s)}"
        if answer_s is not None and self._asked_at + answer_s < due:
            due, late = (
                self._asked_at + answer_s,
                f"had not ended its answer after {format_duration(answer_s)}",
            )
        if connection is None or due > now:
            self._handle = self._loop.call_at(max(due, now + 0.001), self._check)
            return
        self.overdue = AnswerTimeout(
            f"the engine {late}", hint="`timeout`, `timeouts` and X-Cotenant-Timeout set how long it may be."
        )
        connection.abort()
