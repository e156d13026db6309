"""The last ten minutes of devices and models in steps of five seconds, for curves."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from cotenant.domain.decisions import DeviceStatus
from cotenant.gateway.http.asgi import send_json
from cotenant.gateway.http.request import ApiRequest, Routes
from cotenant.gateway.telemetry.counters import RequestCounters
from cotenant.interfaces import Operator

STEP_S: Final = 5.0
POINTS: Final = 120

Curve = deque[float | None]


def _curve() -> Curve:
    return deque(maxlen=POINTS)


@dataclass(slots=True)
class _Device:
    status: DeviceStatus
    used_bytes: Curve = field(default_factory=_curve)
    utilisation_percent: Curve = field(default_factory=_curve)


@dataclass(slots=True)
class _Model:
    requests: int
    tokens: int
    firsts: int
    first_s: float
    requests_per_s: Curve = field(default_factory=_curve)
    tokens_per_s: Curve = field(default_factory=_curve)
    first_token_s: Curve = field(default_factory=_curve)


class History:
    """Curves of equal length: what was not known, or not there yet, is None.

    A device or model that is gone goes with all its points, so that memory stays bounded: 120 points of
    three curves at most.
    """

    def __init__(self, request_counters: RequestCounters, operator: Operator | None) -> None:
        self._request_counters = request_counters
        self._operator = operator
        self._devices: dict[str, _Device] = {}
        self._models: dict[str, _Model] = {}
        self._length = 0
        self._last_at = time.time()

    @property
    def routes(self) -> Routes:
        """What is answered here."""
        return {"/api/history": {"GET": self._answer}}

    async def run(self) -> None:
        """Take a point every five seconds until cancelled."""
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
        """Take a point; rates are over the seconds since the one before."""
        devices = self._operator.devices() if self._operator else ()
        self._devices = {each.uuid: self._device(each) for each in devices}
        models: dict[str, _Model] = {}
        for name, counters in self._request_counters.all():
            if not name:
                continue
            requests, tokens = sum(counters.by_class), counters.completion_tokens
            firsts, first_s = sum(counters.first_token_s.counts), counters.first_token_s.total
            model = models[name] = self._models.get(name) or _Model(
                requests, tokens, firsts, first_s, self._past(), self._past(), self._past()
            )
            model.requests_per_s.append((requests - model.requests) / elapsed_s)
            model.tokens_per_s.append((tokens - model.tokens) / elapsed_s)
            fresh = firsts - model.firsts
            model.first_token_s.append((first_s - model.first_s) / fresh if fresh else None)
            model.requests, model.tokens = requests, tokens
            model.firsts, model.first_s = firsts, first_s
        self._models = models
        self._length = min(POINTS, self._length + 1)
        self._last_at = time.time()

    def _device(self, status: DeviceStatus) -> _Device:
        device = self._devices.get(status.uuid) or _Device(status, self._past(), self._past())
        device.status = status
        total, free = status.total_bytes, status.free_bytes
        device.used_bytes.append(None if total is None or free is None else total - free)
        device.utilisation_percent.append(status.utilisation_percent)
        return device

    def _past(self) -> Curve:
        return deque([None] * min(self._length, POINTS - 1), maxlen=POINTS)

    def as_json(self) -> Mapping[str, Any]:
        """Return all curves, the oldest point first; `end` is the time of the last."""
        return {
            "step_s": STEP_S,
            "points": self._length,
            "end": datetime.fromtimestamp(self._last_at).astimezone().isoformat(timespec="milliseconds"),
            "devices": [_device_json(device) for device in self._devices.values()],
            "models": [
                {
                    "name": name,
                    "requests_per_s": _rounded(model.requests_per_s),
                    "tokens_per_s": _rounded(model.tokens_per_s),
                    "first_token_s": _rounded(model.first_token_s),
                }
                for name, model in self._models.items()
            ],
        }

    async def _answer(self, request: ApiRequest) -> None:
        if not self._length:
            self.sample(STEP_S)
        await send_json(request.send, 200, self.as_json())


def _device_json(device: _Device) -> dict[str, Any]:
    status = device.status
    return {
        "uuid": status.uuid,
        "index": status.index,
        "name": status.name,
        "total_bytes": status.total_bytes,
        "used_bytes": list(device.used_bytes),
        "utilisation_percent": list(device.utilisation_percent),
    }


def _rounded(curve: Curve) -> Sequence[float | None]:
    return [None if value is None else round(value, 3) for value in curve]
