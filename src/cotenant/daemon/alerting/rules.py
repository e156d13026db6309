"""When an alert begins and when it ends: a state machine that gets the time from its caller."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cotenant.daemon.alerting.node_conditions import OVER, Condition
from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.units import format_bytes, format_duration

_RELIEF_PERCENT: Final = 5
"""How far below its limit a card's memory must fall, so that the alert does not begin and end often."""
_LOOP_COUNT: Final = 3
_LOOP_WITHIN_S: Final = 300.0
_QUIET_S: Final = 600.0
"""A fault is over when no other has followed it for this long."""
_EPISODES: Final = 256


@dataclass(frozen=True, slots=True)
class CardMemory:
    """A card as measured: its display name and its memory; unknown is None."""

    label: str
    used_bytes: int | None
    total_bytes: int | None


class AlertRules:
    """Receives observations and returns the alerts that begin or end because of them.

    A card's alert begins once its memory has been above `memory_percent` for `memory_for_s`, and ends 5
    percentage points below. An incident (a fault, a kill, failures in a row) raises one alert, which ends
    when the incident has not occurred again for ten minutes.
    """

    def __init__(self, memory_percent: int = 90, memory_for_s: float = 60.0) -> None:
        self._limit = memory_percent / 100
        self._relief = max(0, memory_percent - _RELIEF_PERCENT) / 100
        self._for_s = memory_for_s
        self._cards: dict[str, str] = {}
        self._full_since: dict[str, float] = {}
        self._failures: dict[str, deque[float]] = {}
        self._incidents: dict[tuple[AlertKind, str], float] = {}
        self.active: dict[tuple[AlertKind, str], Alert] = {}

    def cards(self, now: float, seen: Mapping[str, CardMemory]) -> list[Alert]:
        """Record all cards that answered, by their ids."""
        alerts = [alert for card in seen.values() for alert in self._memory(now, card)]
        for uuid, label in self._cards.items():
            if uuid not in seen:
                self._full_since.pop(label, None)
                alerts += self._end(now, AlertKind.MEMORY_HIGH, label, "it does not answer any more")
                alerts += self._begin(now, AlertKind.CARD_LOST, label, f"{label} does not answer any more")
        for uuid, card in seen.items():
            self._cards[uuid] = card.label
            alerts += self._end(now, AlertKind.CARD_LOST, card.label, f"{card.label} answers again")
        return alerts

    def _memory(self, now: float, card: CardMemory) -> list[Alert]:
        used, total, label = card.used_bytes, card.total_bytes, card.label
        if used is None or not total:
            return []
        text = f"{label}: {used / total:.0%} of {format_bytes(total)} in use"
        if used <= total * self._limit:
            self._full_since.pop(label, None)
            # Between the two limits an active alert stays active.
            relieved = used <= total * self._relief
            return self._end(now, AlertKind.MEMORY_HIGH, label, text) if relieved else []
        since = self._full_since.setdefault(label, now)
        if now - since < self._for_s:
            return []
        lasted = f" for {format_duration(now - since)}" if now > since else ""
        return self._begin(now, AlertKind.MEMORY_HIGH, label, text + lasted)

    def failed(self, now: float, subject: str) -> list[Alert]:
        """Record that an engine or a container ended by itself."""
        if len(self._failures) >= _EPISODES and subject not in self._failures:
            self._failures.pop(next(iter(self._failures)))
        times = self._failures.setdefault(subject, deque(maxlen=_LOOP_COUNT))
        times.append(now)
        if len(times) < _LOOP_COUNT or now - times[0] > _LOOP_WITHIN_S:
            return []
        text = f"{subject} failed {_LOOP_COUNT} times within {format_duration(max(1.0, now - times[0]))}"
        return self.incident(now, AlertKind.RESTART_LOOP, subject, text)

    def incident(self, now: float, kind: AlertKind, subject: str, text: str) -> list[Alert]:
        """Record something that has no end of its own, such as an error that a driver reports."""
        if len(self._incidents) >= _EPISODES and (kind, subject) not in self._incidents:
            return []
        self._incidents[kind, subject] = now
        return self._begin(now, kind, subject, text)

    def nodes(self, now: float, found: Mapping[Condition, str]) -> list[Alert]:
        """Record all that is wrong with machines now, in words; what was wrong and is not any more ends."""
        alerts = [
            each for (kind, subject), text in found.items() for each in self._begin(now, kind, subject, text)
        ]
        for kind, subject in [each for each in self.active if each[0] in OVER and each not in found]:
            alerts += self._end(now, kind, subject, OVER[kind].format(subject))
        return alerts

    def tick(self, now: float) -> list[Alert]:
        """End the incidents that have not occurred again for ten minutes."""
        alerts: list[Alert] = []
        for kind, subject in [key for key, at in self._incidents.items() if now - at >= _QUIET_S]:
            del self._incidents[kind, subject]
            self._failures.pop(subject, None)
            text = f"{subject}: nothing more for {format_duration(_QUIET_S)}"
            alerts += self._end(now, kind, subject, text)
        return alerts

    def _begin(self, now: float, kind: AlertKind, subject: str, text: str) -> list[Alert]:
        if (kind, subject) in self.active:
            return []
        self.active[kind, subject] = alert = Alert(kind, subject, now, True, text)
        return [alert]

    def _end(self, now: float, kind: AlertKind, subject: str, text: str) -> list[Alert]:
        ended = self.active.pop((kind, subject), None)
        return [Alert(kind, subject, now, False, text)] if ended else []
