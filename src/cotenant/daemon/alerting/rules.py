"""When an alert begins and when it ends: a state machine without a clock of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.units import format_bytes, format_duration

_RELIEF_PERCENT: Final = 5
"""How far below its limit a card's memory must fall: at the limit itself it would come and go."""
_LOOP_COUNT: Final = 3
_LOOP_WITHIN_S: Final = 300.0
_QUIET_S: Final = 600.0
"""After so long without another, a fault counts as over."""
_EPISODES: Final = 256


@dataclass(frozen=True, slots=True)
class CardMemory:
    """A card as measured: its name for people, and its memory; unknown is None."""

    label: str
    used_bytes: int | None
    total_bytes: int | None


class AlertRules:
    """Takes in what was seen and returns the alerts that begin or end with it.

    A card is told of once it has been fuller than `memory_percent` for `memory_for_s`, and again when it is 5
    percentage points below. What comes as a blow (a fault, a kill, restarts in a row) is told once, and is
    over when nothing more of it was heard for ten minutes.
    """

    def __init__(self, memory_percent: int = 90, memory_for_s: float = 60.0) -> None:
        self._limit = memory_percent / 100
        self._relief = max(0, memory_percent - _RELIEF_PERCENT) / 100
        self._for_s = memory_for_s
        self._cards: dict[str, str] = {}
        self._full_since: dict[str, float] = {}
        self._restarts: dict[str, deque[float]] = {}
        self._heard: dict[tuple[AlertKind, str], float] = {}
        self.active: dict[tuple[AlertKind, str], Alert] = {}

    def cards(self, now: float, seen: Mapping[str, CardMemory]) -> Sequence[Alert]:
        """Take in all cards that answered, by their ids."""
        told = [self._memory(now, card) for card in seen.values()]
        for uuid, label in self._cards.items():
            if uuid not in seen:
                self._full_since.pop(label, None)
                told.append(self._end(now, AlertKind.MEMORY_HIGH, label, "it does not answer any more"))
                told.append(self._begin(now, AlertKind.CARD_LOST, label, f"{label} does not answer any more"))
        for uuid, card in seen.items():
            self._cards[uuid] = card.label
            told.append(self._end(now, AlertKind.CARD_LOST, card.label, f"{card.label} answers again"))
        return [alert for alert in told if alert]

    def _memory(self, now: float, card: CardMemory) -> Alert | None:
        used, total, label = card.used_bytes, card.total_bytes, card.label
        if used is None or not total:
            return None
        filled = f"{used / total:.0%} of {format_bytes(total)} in use"
        if used <= total * self._relief:
            self._full_since.pop(label, None)
            return self._end(now, AlertKind.MEMORY_HIGH, label, f"{label}: {filled}")
        if used <= total * self._limit:
            # Between the two an alert stays as it is, and the wait for one begins anew.
            self._full_since.pop(label, None)
            return None
        since = self._full_since.setdefault(label, now)
        if now - since < self._for_s:
            return None
        lasted = f" for {format_duration(now - since)}" if now > since else ""
        text = f"{label}: {filled}{lasted}"
        return self._begin(now, AlertKind.MEMORY_HIGH, label, text)

    def fault(self, now: float, subject: str, text: str) -> Sequence[Alert]:
        """Take in that a card's driver reported an error."""
        return self._incident(now, AlertKind.GPU_FAULT, subject, text)

    def killed(self, now: float, subject: str, text: str) -> Sequence[Alert]:
        """Take in that the kernel killed something for want of memory."""
        return self._incident(now, AlertKind.OUT_OF_MEMORY, subject, text)

    def restarted(self, now: float, subject: str) -> Sequence[Alert]:
        """Take in that something ended by itself or was started again."""
        if len(self._restarts) >= _EPISODES and subject not in self._restarts:
            self._restarts.pop(next(iter(self._restarts)))
        times = self._restarts.setdefault(subject, deque(maxlen=_LOOP_COUNT))
        times.append(now)
        if len(times) < _LOOP_COUNT or now - times[0] > _LOOP_WITHIN_S:
            return ()
        text = f"{subject} failed {_LOOP_COUNT} times within {format_duration(max(1.0, now - times[0]))}"
        return self._incident(now, AlertKind.RESTART_LOOP, subject, text)

    def tick(self, now: float) -> Sequence[Alert]:
        """Take in that time has passed."""
        over = [key for key, at in self._heard.items() if now - at >= _QUIET_S]
        told = []
        for kind, subject in over:
            del self._heard[kind, subject]
            self._restarts.pop(subject, None)
            text = f"{subject}: nothing more for {format_duration(_QUIET_S)}"
            told.append(self._end(now, kind, subject, text))
        return [alert for alert in told if alert]

    def _incident(self, now: float, kind: AlertKind, subject: str, text: str) -> Sequence[Alert]:
        if len(self._heard) >= _EPISODES and (kind, subject) not in self._heard:
            return ()
        self._heard[kind, subject] = now
        alert = self._begin(now, kind, subject, text)
        return [alert] if alert else []

    def _begin(self, now: float, kind: AlertKind, subject: str, text: str) -> Alert | None:
        if (kind, subject) in self.active:
            return None
        self.active[kind, subject] = alert = Alert(kind, subject, now, True, text)
        return alert

    def _end(self, now: float, kind: AlertKind, subject: str, text: str) -> Alert | None:
        if self.active.pop((kind, subject), None) is None:
            return None
        return Alert(kind, subject, now, False, text)
