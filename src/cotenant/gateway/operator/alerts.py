"""Alerts: the active ones, the last ones, and their feed of server-sent events."""

from collections.abc import AsyncGenerator

from cotenant.asgi import encode_json
from cotenant.domain.alerts import Alert
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import Reply, Route
from cotenant.gateway.http.streams import events_of
from cotenant.gateway.http.timing import LocalTime
from cotenant.gateway.operator.schema import AlertResponse, AlertsResponse
from cotenant.interfaces import AlertBook


class AlertRoutes:
    """Handles requests about alerts."""

    def __init__(self, book: AlertBook, local_time: LocalTime) -> None:
        self._book = book
        self._local_time = local_time

    def events(self) -> AsyncGenerator[bytes, None]:
        """Follow alerts as events named `alert`."""
        return events_of(
            self._book.follow(),
            lambda alert: b"event: alert\ndata: %b\n\n" % encode_json(self._response(alert)),
        )

    @Route(
        "GET", "/api/alerts", "Return the active alerts and the last ones", Reply(AlertsResponse, "alerts")
    )
    async def _list(self, request: ApiRequest) -> object:
        return {
            "active": [self._response(alert) for alert in self._book.active()],
            "recent": [self._response(alert) for alert in self._book.recent()],
        }

    def _response(self, alert: Alert) -> AlertResponse:
        time = self._local_time.text(alert.at)
        return AlertResponse(alert.kind, alert.subject, alert.active, alert.at, time, alert.text)
