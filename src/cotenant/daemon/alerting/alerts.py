"""Alerts, sent to the log, to subscribers and to a webhook that the operator configures."""

import asyncio
import http.client
import json
import logging
import socket
import urllib.request
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from urllib.parse import urlsplit

from cotenant.clock import Clock
from cotenant.concurrency.broadcast import Broadcast
from cotenant.config.configuration import AlertSettings
from cotenant.daemon.alerting.node_conditions import Expected, conditions
from cotenant.daemon.alerting.rules import AlertRules, CardMemory
from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.decisions import Decision, DecisionKind, NodeStatus
from cotenant.domain.devices import DeviceKind, Inventory
from cotenant.domain.exit_causes import Cause

_LOG = logging.getLogger("cotenant.alerts")


class Webhook:
    """Posts each alert as JSON, one after another, in a thread: nothing waits for it.

    A post that fails is repeated after each of `pauses_s`, then given up. While the receiver is down, at
    most 64 alerts wait; the oldest are dropped.
    """

    def __init__(self, url: str, *, pauses_s: Sequence[float] = (1.0, 5.0, 25.0)) -> None:
        self._url = url
        self._pauses_s = pauses_s
        self._host = socket.gethostname()
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(64)

    def post(self, alert: Alert) -> None:
        """Queue an alert to be posted."""
        body = {
            "alert": alert.kind,
            "state": "active" if alert.active else "over",
            "subject": alert.subject,
            "text": alert.text,
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "host": self._host,
        }
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(json.dumps(body, ensure_ascii=False).encode())

    async def run(self) -> None:
        """Post queued alerts until cancelled."""
        while True:
            await self._deliver(await self._queue.get())

    async def _deliver(self, body: bytes) -> None:
        for pause_s in (*self._pauses_s, None):
            problem = await asyncio.to_thread(self._send, body)
            if problem is None:
                return
            if pause_s is None:
                # The URL itself may contain a secret.
                host = urlsplit(self._url).hostname
                _LOG.warning("an alert could not be posted to the webhook at %s: %s", host, problem)
                return
            await asyncio.sleep(pause_s)

    def _send(self, body: bytes) -> str | None:
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            self._url, data=body, headers={"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=5.0):  # noqa: S310
                return None
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__


class Alerts:
    """Applies AlertRules to observations, and publishes each alert when it begins and when it ends."""

    def __init__(self, settings: AlertSettings, clock: Clock) -> None:
        self._rules = AlertRules(settings.memory_percent, settings.memory_for_s)
        self._clock = clock
        self._webhook = Webhook(settings.webhook) if settings.webhook else None
        self._recent: deque[Alert] = deque(maxlen=100)
        self._totals: Counter[AlertKind] = Counter()
        self._subscribers: Broadcast[Alert] = Broadcast(64)

    # Observations.

    def measured(self, inventory: Inventory | None) -> None:
        """Check the cards as read; None if the driver does not answer."""
        self._publish(self._rules.cards(self._clock.now(), _cards(inventory) if inventory else {}))

    def decided(self, decision: Decision) -> None:
        """Count the failures of a model's engine; one that hung is an incident of its own."""
        if decision.kind is DecisionKind.FAILED and decision.model is not None:
            now, model = self._clock.now(), decision.model
            self._publish(self._rules.failed(now, model))
            if decision.facts.get("cause") == Cause.HUNG.value:
                self._publish(self._rules.incident(now, AlertKind.ENGINE_HUNG, model, decision.text))

    def fault(self, subject: str, text: str) -> None:
        """Record an error that a card's driver reported."""
        self._publish(self._rules.incident(self._clock.now(), AlertKind.GPU_FAULT, subject, text))

    def container_ended(self, name: str) -> None:
        """Record that a container ended with an error."""
        self._publish(self._rules.failed(self._clock.now(), name))

    def container_killed(self, name: str) -> None:
        """Record that the kernel killed a container because memory ran out."""
        text = f"{name} was killed by the kernel: it was out of memory"
        self._publish(self._rules.incident(self._clock.now(), AlertKind.OUT_OF_MEMORY, name, text))

    def nodes(
        self, nodes: Sequence[NodeStatus], expected: Expected, launcher_problem: str | None = None
    ) -> None:
        """Check all machines; `launcher_problem` is why none can be reached, if so."""
        found = dict(conditions(nodes, expected, self._rules.active, launcher_problem))
        self._publish(self._rules.nodes(self._clock.now(), found))

    async def run(self) -> None:
        """End alerts whose time is over and post alerts to the webhook, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._webhook is not None:
                tasks.create_task(self._webhook.run())
            while True:
                await asyncio.sleep(5.0)
                self._publish(self._rules.tick(self._clock.now()))

    def _publish(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            level = logging.WARNING if alert.active else logging.INFO
            _LOG.log(level, "%s %s: %s", alert.kind, "begins" if alert.active else "is over", alert.text)
            self._recent.append(alert)
            self._totals[alert.kind] += alert.active
            self._subscribers.publish(alert)
            if self._webhook is not None:
                self._webhook.post(alert)

    # Queries.

    def active(self) -> Sequence[Alert]:
        """Return the active alerts, oldest first."""
        return tuple(self._rules.active.values())

    def recent(self) -> Sequence[Alert]:
        """Return the last alerts that began or ended, oldest first."""
        return tuple(self._recent)

    def totals(self) -> Mapping[AlertKind, int]:
        """Return how many alerts of each kind have begun."""
        return {kind: self._totals[kind] for kind in AlertKind}

    def follow(self) -> AsyncIterator[Alert]:
        """Yield alerts as they begin and end; a slow reader loses the oldest."""
        return self._subscribers.subscribe()


def _cards(inventory: Inventory) -> dict[str, CardMemory]:
    cards = [device for device in inventory.devices if device.kind is not DeviceKind.HOST]
    labels = Counter(device.label for device in cards)
    seen = {}
    for device in cards:
        # Slices of one card have the same name if they have the same size.
        label = device.label if labels[device.label] == 1 else f"{device.label} ({device.id})"
        seen[str(device.id)] = CardMemory(label, inventory.reading(device).used_bytes, device.total_bytes)
    return seen
