"""The last ten minutes of devices and models in steps of five seconds, for charts."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from cotenant.domain.decisions import DeviceStatus
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import Reply, Route
from cotenant.gateway.telemetry.counters import ModelCounters, RequestCounters
from cotenant.interfaces import Operator

STEP_S: Final = 5.0
POINTS: Final = 120

Curve = deque[float | None]


@dataclass(slots=True)
class DeviceCurves:
    """A device's last points, oldest first, null for unknown."""

    uuid: str
    index: int | None
    name: str
    total_bytes: int | None
    used_bytes: deque[int | None]
    utilisation_percent: Curve


@dataclass(slots=True)
class ModelCurves:
    """A model's last points, oldest first, null for unknown."""

    name: str
    requests_per_s: Curve
    tokens_per_s: Curve
    first_token_s: Curve


@dataclass(frozen=True, slots=True)
class CurvesResponse:
    """The last ten minutes; all curves have `points` points, `step_s` apart, the last at `end`."""

    step_s: float
    points: int
    end: str
    devices: Sequence[DeviceCurves]
    models: Sequence[ModelCurves]


_Totals = tuple[int, int, int, float]
"""A model's counters at a point: requests, tokens, first tokens, and the seconds until those."""


@dataclass
class History:
    """Curves of equal length: unknown values are None.

    The curves of removed devices and models are dropped, so that memory stays bounded: each has at most
    three curves with 120 points.
    """

    _request_counters: RequestCounters
    _operator: Operator
    _devices: dict[str, DeviceCurves] = field(default_factory=dict)
    _models: dict[str, ModelCurves] = field(default_factory=dict)
    _totals: dict[str, _Totals] = field(default_factory=dict)
    _length: int = 0
    _last_at: float = field(default_factory=time.time)

    async def run(self) -> None:
        """Record a point every five seconds until cancelled."""
        loop = asyncio.get_running_loop()
        due = began = loop.time()
        while True:
            due += STEP_S
            await asyncio.sleep(max(0.0, due - loop.time()))
            now = loop.time()
            self.sample(now - began)
            began = now
            if now > due + STEP_S:
                due = now

    def sample(self, elapsed_s: float) -> None:
        """Record a point; rates are over the seconds since the last one."""
        self._devices = {each.uuid: self._device(each) for each in self._operator.devices()}
        totals = {name: _totals(counters) for name, counters in self._request_counters.all() if name}
        self._models = {name: self._model(name, now, elapsed_s) for name, now in totals.items()}
        self._totals = totals
        self._length = min(POINTS, self._length + 1)
        self._last_at = time.time()

    def _device(self, status: DeviceStatus) -> DeviceCurves:
        before = self._devices.get(status.uuid)
        used, busy = (
            (before.used_bytes, before.utilisation_percent) if before else (self._past(), self._past())
        )
        used.append(status.used_bytes)
        busy.append(status.utilisation_percent)
        return DeviceCurves(status.uuid, status.index, status.name, status.total_bytes, used, busy)

    def _model(self, name: str, now: _Totals, elapsed_s: float) -> ModelCurves:
        before = self._totals.get(name, now)
        requests, tokens, firsts, first_s = (new - old for new, old in zip(now, before, strict=True))
        model = self._models.get(name) or ModelCurves(name, self._past(), self._past(), self._past())
        model.requests_per_s.append(round(requests / elapsed_s, 3))
        model.tokens_per_s.append(round(tokens / elapsed_s, 3))
        model.first_token_s.append(round(first_s / firsts, 3) if firsts else None)
        return model

    def _past(self) -> deque[Any]:
        return deque([None] * min(self._length, POINTS - 1), maxlen=POINTS)

    def curves(self) -> CurvesResponse:
        """Return all curves."""
        end = datetime.fromtimestamp(self._last_at).astimezone().isoformat(timespec="milliseconds")
        devices, models = tuple(self._devices.values()), tuple(self._models.values())
        return CurvesResponse(STEP_S, self._length, end, devices, models)

    @Route(
        "GET /api/history",
        "Return the last ten minutes of devices and models, as curves",
        Reply(CurvesResponse, "curves"),
    )
    async def _answer(self, request: ApiRequest) -> object:
        if not self._length:
            self.sample(STEP_S)
        return self.curves()


def _totals(counters: ModelCounters) -> _Totals:
    first = counters.first_token_s
    return sum(counters.by_class), counters.completion_tokens, sum(first.counts), first.total
