"""The scheduler's decisions: logged, remembered for a while, and sent to whoever follows them."""

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Final

from cotenant.concurrency.broadcast import Broadcast
from cotenant.domain.decisions import Decision

_LOG = logging.getLogger("cotenant.decisions")
_KEPT_PER_MODEL: Final = 50
_KEPT: Final = 500
_BACKLOG: Final = 256


class DecisionFeed:
    """Publishes decisions. `listeners` are called at once, in order; subscribers read at their own pace."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Decision], None]] = []
        self._recent: deque[Decision] = deque(maxlen=_KEPT)
        self._by_model: dict[str, deque[Decision]] = {}
        self._subscribers: Broadcast[Decision] = Broadcast(_BACKLOG)

    def publish(self, decision: Decision) -> None:
        """Log a decision, remember it, and pass it on."""
        _LOG.info(
            "%d %s model=%s cause=%s: %s",
            decision.number,
            decision.kind,
            decision.model or "-",
            decision.cause,
            decision.text,
            extra={"decision": decision},
        )
        self._recent.append(decision)
        if decision.model is not None:
            self._by_model.setdefault(decision.model, deque(maxlen=_KEPT_PER_MODEL)).append(decision)
        self._subscribers.publish(decision)
        for listener in self.listeners:
            listener(decision)

    def keep_only(self, models: Collection[str]) -> None:
        """Forget the decisions about all other models."""
        self._by_model = {name: kept for name, kept in self._by_model.items() if name in models}

    def forget(self, model: str) -> None:
        """Forget the decisions about a model."""
        self._by_model.pop(model, None)

    def recent(self) -> Sequence[Decision]:
        """Return the last decisions about any model, oldest first."""
        return tuple(self._recent)

    def about(self, model: str) -> Sequence[Decision]:
        """Return the last decisions about a model, oldest first."""
        return tuple(self._by_model.get(model, ()))

    def subscribe(self) -> AsyncIterator[Decision]:
        """Yield decisions as they are made; a slow reader loses the oldest."""
        return self._subscribers.subscribe()
