"""Requests that were in flight when an engine crashed or hung: asked again in turn, refused if it recurs."""

import asyncio
import contextlib
import hashlib
import time
from dataclasses import dataclass, field
from typing import Final

from cotenant.domain.errors import CrashesEngine, EngineDied
from cotenant.domain.exit_causes import Cause
from cotenant.interfaces import Lease

_BY_REQUEST: Final = frozenset({Cause.CRASHED, Cause.INTERNAL_CHECK, Cause.GPU_FAULT, Cause.HUNG})
"""Ends that a request may have caused, unlike want of memory or a kill."""
_REMEMBERED: Final = 256
_REFUSED_FOR_S: Final = 600.0
_CRASHES: Final = 3
_CRASHES_ALONE: Final = 2
_OTHERS_WAIT_S: Final = 5.0
_WATCHED: Final = 64
_WATCHED_FOR_S: Final = 900.0
"""Longer than it takes to see that an engine whose queue is stuck hangs."""


@dataclass(slots=True, eq=False)
class Turn:
    """A suspect's turn to be asked again.

    `alone` says that its engine had no other request when it began, `joined` that it may have got some since.
    """

    model: str
    alone: bool
    joined: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Suspects:
    """Finds the request that crashes engines, and keeps it from them.

    After a crash nobody knows which of the requests in flight it was. Each is asked once more, in turn, and
    other requests for that model wait a moment, until the engine has begun its answer. A request that was
    there at two crashes, alone at the second, or at three, is refused for ten minutes. It is remembered by
    its hash; an answer to the same request clears it. `asking` has each model's turn under way, `crashes` how
    often each request was there and what `counted` was then; that is the number of crashes counted so far.

    A hang is a crash that takes minutes to be seen, so it is the client that asks again, or left before.
    """

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._refused: dict[bytes, tuple[float, str]] = {}
        self._watched: dict[bytes, asyncio.Task[None]] = {}
        self.crashes: dict[bytes, tuple[int, int]] = {}
        self.counted = 0
        self.asking: dict[str, Turn] = {}

    def check(self, model: str, path: bytes, body: bytes) -> None:
        """Raise CrashesEngine for a request that is refused."""
        if self._refused:
            at, why = self._refused.get(request_hash(model, path, body), (0.0, ""))
            if why and time.monotonic() - at < _REFUSED_FOR_S:
                raise _refusal(model, why)

    def is_known(self, model: str, path: bytes, body: bytes) -> bool:
        """Whether a request was there at a crash, and has had no answer since."""
        return bool(self.crashes) and request_hash(model, path, body) in self.crashes

    def record(
        self, model: str, request: bytes, death: Exception | None, turn: Turn | None, asked_at: int
    ) -> bool:
        """Count a crash against a request by its hash; False if it was no crash by a request.

        `asked_at` is what `counted` was when it was asked: if it has been counted since, by another client,
        it is the same crash. Raises CrashesEngine if the request is refused from now on.
        """
        if not isinstance(death, EngineDied) or death.cause not in _BY_REQUEST:
            return False
        if asked_at < self.crashes.get(request, (0, 0))[1]:
            return True
        count, self.counted = self.crashes.pop(request, (0, 0))[0] + 1, self.counted + 1
        self.crashes[request] = count, self.counted
        if len(self.crashes) > _REMEMBERED:
            del self.crashes[next(iter(self.crashes))]
        # Who joins it later finds the queue of an engine that hangs stuck already.
        alone = turn is not None and turn.alone and (death.cause is Cause.HUNG or not turn.joined)
        if count < (_CRASHES_ALONE if alone else _CRASHES):
            return True
        self._refused.pop(request, None)
        self._refused[request] = time.monotonic(), death.message
        if len(self._refused) > _REMEMBERED:
            del self._refused[next(iter(self._refused))]
        raise _refusal(model, death.message)

    def clear(self, request: bytes) -> None:
        """Forget the crashes of a request that was answered."""
        self.crashes.pop(request, None)
        self._refused.pop(request, None)

    def watch(self, lease: Lease, model: str, request: bytes, turn: Turn | None) -> None:
        """Count the end of its engine, if it comes soon, against a request whose client did not wait."""
        left_at = self.counted

        async def run() -> None:
            death = await lease.death(_WATCHED_FOR_S)
            with contextlib.suppress(CrashesEngine):
                self.record(model, request, death, turn, left_at)

        if turn is not None:
            turn.joined = True
        before = self._watched.pop(request, None)
        if before is None and len(self._watched) == _WATCHED:
            before = self._watched.pop(next(iter(self._watched)))
        if before is not None:
            before.cancel()
        self._watched[request] = asyncio.create_task(run())

    async def turn(self, model: str, path: bytes, body: bytes) -> Turn:
        """Wait for a suspect's turn; `end` it. Raises CrashesEngine if the request is refused by then."""
        await self._locks.setdefault(model, asyncio.Lock()).acquire()
        turn = self.asking[model] = Turn(model, alone=True)
        try:
            self.check(model, path, body)
        except CrashesEngine:
            self.end(turn)
            raise
        return turn

    def end(self, turn: Turn) -> None:
        """End a turn: its engine answers, or has crashed; a second call does nothing."""
        if not turn.ended.is_set():
            turn.ended.set()
            del self.asking[turn.model]
            self._locks[turn.model].release()

    async def let_pass(self, model: str) -> None:
        """Wait while a suspect is asked, for a moment."""
        turn = self.asking.get(model)
        if turn is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_OTHERS_WAIT_S):
                    await turn.ended.wait()
            turn.joined = turn.joined or not turn.ended.is_set()


def request_hash(model: str, path: bytes, body: bytes) -> bytes:
    """Return what a request is remembered by."""
    return hashlib.sha256(b"%b %b %b" % (model.encode(), path, body)).digest()


def _refusal(model: str, why: str) -> CrashesEngine:
    return CrashesEngine(
        f"this request ended the engine of {model} each time it was asked: {why}",
        hint="It is not asked again for ten minutes. Change it, or update the engine.",
    )
