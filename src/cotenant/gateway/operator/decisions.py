"""Decisions and alerts, with their feed: as JSON, as server-sent events, and as lines of text."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cotenant.asgi import TEXT_TYPE, encode_json, send_body, send_head, send_stream
from cotenant.clock import Clock
from cotenant.domain import errors
from cotenant.domain.alerts import Alert
from cotenant.domain.decisions import Decision
from cotenant.domain.errors import UnknownLease, UnknownModel
from cotenant.domain.fragmentation import Defragmentation
from cotenant.domain.nodes import LoadCost, costs_text
from cotenant.domain.residencies import model_of
from cotenant.gateway.http.limits import Timing
from cotenant.gateway.http.model_list import resolve_copy
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import Parameter, Reply, Route, integer
from cotenant.gateway.http.streams import STREAM_HEADERS, events_of, merged
from cotenant.gateway.operator.models import MODEL, NAME, NO_SUCH_MODEL
from cotenant.gateway.operator.schema import (
    AlertResponse,
    AlertsResponse,
    DecisionResponse,
    DecisionsResponse,
    WhyResponse,
)
from cotenant.gateway.services.schema import apply_event
from cotenant.interfaces import AlertBook, Lessor, Operator, Router
from cotenant.services.operator import Services

_DECISIONS: Final = 100


@dataclass(frozen=True)
class DecisionRoutes:
    """Handles requests about decisions and alerts, and the feed of both and of the steps of an apply."""

    _router: Router
    _operator: Operator
    _lessor: Lessor
    _alerts: AlertBook
    _services: Services | None
    _clock: Clock
    _timing: Timing

    @Route(
        f"GET {MODEL}/why",
        "Return the last decisions about a model, or a lease",
        Reply(WhyResponse, "decisions, oldest first"),
        NO_SUCH_MODEL,
        (NAME,),
        other_replies=(Reply(None, "the same as text", content_type="text/plain"),),
    )
    async def _why(self, request: ApiRequest) -> object:
        try:
            name = model_of(resolve_copy(request.name, self._router))
        except UnknownModel:
            with suppress(UnknownLease):
                return await self._send_why(request, request.name, self._lessor.why(request.name))
            raise
        found = await self._operator.defragmentation(name, unasked=True)
        costs = next((each.load_costs for each in self._operator.statuses() if each.name == name), {})
        return await self._send_why(request, name, self._operator.why(name), found, costs)

    async def _send_why(
        self,
        request: ApiRequest,
        name: str,
        decisions: Sequence[Decision],
        moves: Defragmentation | None = None,
        costs: Mapping[str, LoadCost] | None = None,
    ) -> object:
        found = moves if moves is not None and moves.moves else None
        if not request.wants_text:
            told = [self._response(each) for each in decisions]
            return {"model": name, "decisions": told, "defragmentation": found, "load_costs": costs or {}}
        text = self._as_text(decisions) + ("" if found is None else f"now: {found.text}\n")
        text += f"where its files are: {costs_text(costs)}\n" if costs else ""
        await send_body(request.send, 200, text.encode(), TEXT_TYPE)
        return None

    @Route(
        "GET /api/decisions",
        "Return the last decisions",
        Reply(DecisionsResponse, "decisions, oldest first"),
        (errors.UnknownRoute, errors.BadRequest),
        (Parameter("limit", "how many, at most 500", integer(default=_DECISIONS)),),
    )
    async def _recent(self, request: ApiRequest) -> object:
        limit = request.integer("limit", _DECISIONS, 500)
        decisions = self._operator.recent()
        last = decisions[max(0, len(decisions) - limit) :]
        return {"decisions": [self._response(each) for each in last]}

    @Route(
        "GET /api/events",
        "Follow decisions, the steps of an apply (`event: apply`) and alerts (`event: alert`)",
        Reply(None, "server-sent events", content_type="text/event-stream"),
        (errors.UnknownRoute,),
    )
    async def _events(self, request: ApiRequest) -> None:
        if request.method == "HEAD":
            await send_head(request.send, STREAM_HEADERS)
            return
        feeds = [
            events_of(self._operator.decisions(), self._event),
            events_of(self._alerts.follow(), self._alert_event),
        ]
        if self._services is not None:
            feeds.append(events_of(self._services.changes(), apply_event))
        await send_stream(
            request.receive,
            request.send,
            STREAM_HEADERS,
            merged(*feeds),
            request.ended,
            self._timing.heartbeat_s,
        )

    @Route("GET /api/alerts", "Return the active alerts and the last ones", Reply(AlertsResponse, "alerts"))
    async def _list_alerts(self, request: ApiRequest) -> object:
        return {
            "active": [self._alert(alert) for alert in self._alerts.active()],
            "recent": [self._alert(alert) for alert in self._alerts.recent()],
        }

    def _alert(self, alert: Alert) -> AlertResponse:
        local = self._local_text(alert.at)
        return AlertResponse(alert.kind, alert.subject, alert.active, alert.at, local, alert.text)

    def _alert_event(self, alert: Alert) -> bytes:
        return b"event: alert\ndata: %b\n\n" % encode_json(self._alert(alert))

    def _event(self, decision: Decision) -> bytes:
        data = encode_json(self._response(decision))
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (decision.number, decision.kind.encode(), data)

    def _response(self, made: Decision) -> DecisionResponse:
        local = self._local_text(made.at)
        return DecisionResponse(
            made.number, made.at, local, made.kind, made.model, made.text, made.cause, dict(made.facts)
        )

    def _as_text(self, decisions: Iterable[Decision]) -> str:
        """Render one line each: `10:02:11  evict  idle 312 s, …`; with the date if it is not today."""
        today = datetime.now().astimezone().date()
        lines = []
        for decision in decisions:
            when = self._local(decision.at)
            stamp = when.strftime("%H:%M:%S" if when.date() == today else "%Y-%m-%d %H:%M:%S")
            lines.append(f"{stamp}  {decision.kind.replace('_', ' '):<13} {decision.text}\n")
        return "".join(lines)

    def _local(self, at: float) -> datetime:
        """Convert seconds of the daemon's clock to local time."""
        return datetime.fromtimestamp(time.time() - (self._clock.now() - at)).astimezone()

    def _local_text(self, at: float) -> str:
        return self._local(at).isoformat(timespec="milliseconds")
