"""Alerts, sent to the log, to subscribers and to a webhook."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from cotenant.clock import Clock
from cotenant.concurrency.broadcast import Broadcast
from cotenant.config.configuration import AlertSettings
from cotenant.daemon.alerting.rules import AlertRules, CardMemory
from cotenant.daemon.alerting.webhook import Webhook
from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.devices import DeviceKind, Inventory
from cotenant.domain.exit_causes import Cause

_LOG = logging.getLogger("cotenant.alerts")
_TICK_S: Final = 5.0
_RECENT: Final = 100
_BACKLOG: Final = 64


class Alerts:
    """Applies AlertRules to observations, and publishes each alert when it begins and when it ends."""

    def __init__(self, settings: AlertSettings, clock: Clock) -> None:
        self._rules = AlertRules(settings.memory_percent, settings.memory_for_s)
        self._clock = clock
        self._webhook = Webhook(settings.webhook) if settings.webhook else None
        self._recent: deque[Alert] = deque(maxlen=_RECENT)
        self._totals: Counter[AlertKind] = Counter()
        self._subscribers: Broadcast[Alert] = Broadcast(_BACKLOG)

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

    async def run(self) -> None:
        """End alerts whose time is over and post alerts to the webhook, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._webhook is not None:
                tasks.create_task(self._webhook.run())
            while True:
                await asyncio.sleep(_TICK_S)
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
