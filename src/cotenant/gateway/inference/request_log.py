"""The request log: time, model and durations of each request, never content."""

import asyncio
import json
import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from cotenant.domain.requests import DEFAULT_TERMS, LeaseTerms
from cotenant.domain.units import MIB

_log = logging.getLogger("cotenant.gateway")

CLIENT_CLOSED_REQUEST: Final = 499
"""The status of a request whose client disconnected first."""
_EVERY_S: Final = 1.0
_OWN_ONLY: Final = 0o600


class RequestRecord(NamedTuple):
    """A request that has ended, by the event loop's clock; `granted_at` is None if it never got a slot.

    `model` is the model's own name; tokens are 0 where the engine reports none.
    """

    begun_at: float
    granted_at: float | None
    ended_at: float
    model: str
    status: int
    prompt_tokens: int
    output_tokens: int
    terms: LeaseTerms


@dataclass
class RequestLog:
    """Appends to a file every second, in a thread; adding a request is an append to a list.

    At most `max_waiting` requests wait to be written; what cannot be written is lost, and the daemon's log
    has their number. A file over `max_bytes` becomes `NAME.1`, older ones `NAME.2` and so on up to `kept`.
    """

    _path: Path
    max_waiting: int = 20_000
    max_bytes: int = 64 * MIB
    kept: int = 4
    _waiting: list[RequestRecord] = field(default_factory=list)
    _lost: int = 0
    _failing: bool = False
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def add(self, request: RequestRecord) -> None:
        """Queue a request to be written."""
        if len(self._waiting) < self.max_waiting:
            self._waiting.append(request)
        else:
            self._lost += 1

    async def run(self) -> None:
        """Write new requests every second, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            if self._waiting:
                await asyncio.to_thread(self._write, *self._take())

    def close(self) -> None:
        """Write the remaining requests."""
        if self._waiting:
            self._write(*self._take())

    def _take(self) -> tuple[Sequence[RequestRecord], float]:
        """Return the waiting requests, and the Unix time at which the event loop's clock was 0."""
        taken, self._waiting = self._waiting, []
        return taken, time.time() - asyncio.get_running_loop().time()

    def _write(self, batch: Sequence[RequestRecord], epoch: float) -> None:
        content = "".join(_line(request, epoch) for request in batch).encode()
        with self._writing:
            try:
                self._append(content)
            except OSError as error:
                self._lost += len(batch)
                if not self._failing:
                    _log.error("the request log %s cannot be written: %s", self._path, error.strerror)
                self._failing = True
                return
        self._failing = False
        if self._lost:
            _log.warning("the request log %s lacks %d requests", self._path, self._lost)
            self._lost = 0

    def _append(self, content: bytes) -> None:
        if self._path.exists() and self._path.stat().st_size + len(content) > self.max_bytes:
            self._shift()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        with open(os.open(self._path, flags, _OWN_ONLY), "ab") as file:
            file.write(content)

    def _shift(self) -> None:
        for number in range(self.kept, 0, -1):
            older = self._path if number == 1 else self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _line(request: RequestRecord, epoch: float) -> str:
    """Return a line of JSON; formatted without `json`, as there may be thousands each second."""
    granted_at = request.granted_at
    waited_until = request.ended_at if granted_at is None else granted_at
    service = "null" if granted_at is None else f"{request.ended_at - granted_at:.4f}"
    prompt, output = request.prompt_tokens or "null", request.output_tokens or "null"
    return (
        f'{{"at": {epoch + request.begun_at:.3f}, "model": {json.dumps(request.model)}, '
        f'"status": {request.status}, "wait_s": {waited_until - request.begun_at:.4f}, '
        f'"service_s": {service}, "prompt_tokens": {prompt}, "output_tokens": {output}'
        f"{'' if request.terms is DEFAULT_TERMS else _terms(request.terms)}}}\n"
    )


def _terms(terms: LeaseTerms) -> str:
    """Return the terms that a client requested, as further fields."""
    given = {name: getattr(terms, name) for name in ("priority", "keep_alive_s", "timeout_s")}
    texts = {name: '"forever"' if value == math.inf else value for name, value in given.items()}
    return "".join(f', "{name}": {text}' for name, text in texts.items() if text is not None)
