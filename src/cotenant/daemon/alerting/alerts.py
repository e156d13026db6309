"""Alerts: what was seen, as told to the log, to those who follow, and to a webhook."""

from __future__ import annotations

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

_LOG = logging.getLogger("cotenant.alerts")
_TICK_S: Final = 5.0
_RECENT: Final = 100
_BACKLOG: Final = 64


class Alerts:
    """Judges what is seen by AlertRules and tells each alert once when it begins and once when it ends."""

    def __init__(self, settings: AlertSettings, clock: Clock) -> None:
        self._rules = AlertRules(settings.memory_percent, settings.memory_for_s)
        self._clock = clock
        self._webhook = Webhook(settings.webhook) if settings.webhook else None
        self._recent: deque[Alert] = deque(maxlen=_RECENT)
        self._totals: Counter[AlertKind] = Counter()
        self._subscribers: Broadcast[Alert] = Broadcast(_BACKLOG)

    # What is seen.

    def measured(self, inventory: Inventory | None) -> None:
        """Take in the cards as read; None where the driver does not answer."""
        self._tell(self._rules.cards(self._clock.now(), _cards(inventory) if inventory else {}))

    def decided(self, decision: Decision) -> None:
        """Count the failures of a model's engine."""
        if decision.kind is DecisionKind.FAILED and decision.model is not None:
            self._tell(self._rules.restarted(self._clock.now(), decision.model))

    def fault(self, subject: str, text: str) -> None:
        """Take in an error that a card's driver reported."""
        self._tell(self._rules.fault(self._clock.now(), subject, text))

    def container_ended(self, name: str) -> None:
        """Take in that a container ended with an error."""
        self._tell(self._rules.restarted(self._clock.now(), name))

    def container_killed(self, name: str) -> None:
        """Take in that a container was killed for want of memory."""
        text = f"{name} was killed by the kernel: it was out of memory"
        self._tell(self._rules.killed(self._clock.now(), name, text))

    async def run(self) -> None:
        """Note the passing of time, and post what there is to post, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._webhook is not None:
                tasks.create_task(self._webhook.run())
            while True:
                await asyncio.sleep(_TICK_S)
                self._tell(self._rules.tick(self._clock.now()))

    def _tell(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            level = logging.WARNING if alert.active else logging.INFO
            _LOG.log(level, "%s %s: %s", alert.kind, "begins" if alert.active else "is over", alert.text)
            self._recent.append(alert)
            self._totals[alert.kind] += alert.active
            self._subscribers.publish(alert)
            if self._webhook is not None:
                self._webhook.post(alert)

    # What is shown.

    def active(self) -> Sequence[Alert]:
        """Return what is wrong now, oldest first."""
        return tuple(self._rules.active.values())

    def recent(self) -> Sequence[Alert]:
        """Return the last beginnings and ends, oldest first."""
        return tuple(self._recent)

    def totals(self) -> Mapping[AlertKind, int]:
        """Return how many of each kind have begun."""
        return {kind: self._totals[kind] for kind in AlertKind}

    def follow(self) -> AsyncIterator[Alert]:
        """Follow alerts as they begin and end; a slow reader misses the oldest."""
        return self._subscribers.subscribe()


def _cards(inventory: Inventory) -> dict[str, CardMemory]:
    cards = [device for device in inventory.devices if device.kind is not DeviceKind.HOST]
    named = Counter(device.label for device in cards)
    seen = {}
    for device in cards:
        # Slices of one card bear the same name where they are of the same size.
        label = device.label if named[device.label] == 1 else f"{device.label} ({device.id})"
        seen[str(device.id)] = CardMemory(label, inventory.reading(device).used_bytes, device.total_bytes)
    return seen
