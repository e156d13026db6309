"""Routes of GPU configuration: which service is pinned to which GPU, previewed, saved, applied, rolled back.

GET, PUT /api/system/gpu-config            POST …/apply, …/rollback, …/detect
GET …/preview?strategy=NAME, POST …/preview   GET  …/status, …/history?limit=N
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel

from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import BadAssignment, UnknownRoute
from cotenant.gateway.http.asgi import JSON_TYPE, send_body
from cotenant.gateway.http.bodies import read_body
from cotenant.gateway.http.request import ApiRequest, Routes
from cotenant.gateway.services.responses import (
    apply_response,
    configuration_response,
    detect_response,
    history_response,
    preview_response,
    save_response,
    status_response,
)
from cotenant.gateway.services.schema import (
    MAX_NUMBER,
    ApplyRequest,
    AssignmentRequest,
    ConfigurationRequest,
    PreviewRequest,
    RollbackRequest,
)
from cotenant.services.model import Assignment, Strategy
from cotenant.services.operator import Services

_PATH: Final = "/api/system/gpu-config"
_HISTORY: Final = 20
_MAX_HISTORY: Final = 100


class GpuConfigRoutes:
    """Handles requests about GPU configuration. Without services, every answer says how to configure some."""

    def __init__(self, services: Services | None) -> None:
        self._services = services
        self.routes: Routes = {
            _PATH: {"GET": self._show, "PUT": self._save},
            f"{_PATH}/apply": {"POST": self._apply},
            f"{_PATH}/status": {"GET": self._status},
            f"{_PATH}/detect": {"POST": self._detect},
            f"{_PATH}/preview": {"GET": self._preview, "POST": self._preview_assignments},
            f"{_PATH}/rollback": {"POST": self._rollback},
            f"{_PATH}/history": {"GET": self._history},
        }

    async def _show(self, ask: ApiRequest) -> None:
        await _send(ask, 200, configuration_response(await self._needed().view()))

    async def _save(self, ask: ApiRequest) -> None:
        services = self._needed()
        asked = read_body(ConfigurationRequest, await ask.body())
        plan = await services.save(asked.strategy, _assignments(asked.assignments), force=asked.force)
        await _send(ask, 200, save_response(plan))

    async def _apply(self, ask: ApiRequest) -> None:
        services = self._needed()
        asked = read_body(ApplyRequest, await ask.body() or b"{}")
        await _send(ask, 202, apply_response(await services.apply(force=asked.force)))

    async def _status(self, ask: ApiRequest) -> None:
        await _send(ask, 200, status_response(*await self._needed().status()))

    async def _detect(self, ask: ApiRequest) -> None:
        services = self._needed()
        seen = await services.detect()
        await _send(ask, 200, detect_response(seen, await services.view()))

    async def _preview(self, ask: ApiRequest) -> None:
        services = self._needed()
        await _send(ask, 200, preview_response(*await services.preview(_strategy(ask))))

    async def _preview_assignments(self, ask: ApiRequest) -> None:
        services = self._needed()
        asked = read_body(PreviewRequest, await ask.body())
        found = await services.preview(asked.strategy, _assignments(asked.assignments))
        await _send(ask, 200, preview_response(*found))

    async def _rollback(self, ask: ApiRequest) -> None:
        services = self._needed()
        asked = read_body(RollbackRequest, await ask.body() or b"{}")
        number = asked.number
        if number is None and ask.text("number") is not None:
            number = ask.whole("number", 0, MAX_NUMBER)
            if not number:
                raise BadAssignment("number=0 is in no history", field="number")
        await _send(ask, 202, apply_response(await services.rollback(number)))

    async def _history(self, ask: ApiRequest) -> None:
        limit = ask.whole("limit", _HISTORY, _MAX_HISTORY)
        await _send(ask, 200, history_response(await self._needed().history(limit)))

    def _needed(self) -> Services:
        if self._services is None:
            raise UnknownRoute(
                "no services are configured here",
                hint="Add a `services:` section to cotenant.yaml; `cotenant services import` writes one from "
                "compose files.",
            )
        return self._services


async def _send(ask: ApiRequest, status: int, answer: BaseModel) -> None:
    await send_body(ask.send, status, answer.model_dump_json().encode(), JSON_TYPE)


def _assignments(asked: Sequence[AssignmentRequest]) -> list[Assignment]:
    """Return the assignments requested. Raises BadAssignment for a service that is named twice."""
    first: dict[str, int] = {}
    for number, each in enumerate(asked):
        if each.service in first:
            raise BadAssignment(
                f"{each.service} is there already, as assignments[{first[each.service]}]",
                hint="Keep one.",
                field=f"assignments[{number}].service",
            )
        first[each.service] = number
    return [
        Assignment(
            each.service,
            each.gpu_index,
            DeviceId(each.gpu_uuid) if each.gpu_uuid is not None and each.gpu_index is None else None,
            each.vram_budget_override,
        )
        for each in asked
    ]


def _strategy(ask: ApiRequest) -> Strategy:
    text = ask.text("strategy")
    if text is None or text not in list(Strategy):
        what = "it names no strategy" if text is None else f"{text[:60]!r} is no strategy"
        raise BadAssignment(what, hint=f"Add ?strategy= one of {', '.join(Strategy)}.", field="strategy")
    return Strategy(text)
