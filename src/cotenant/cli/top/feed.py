"""What `cotenant top` asks the daemon, in threads of its own."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from cotenant.cli.client import Daemon, model_path
from cotenant.cli.top.view import Snapshot
from cotenant.domain.errors import CotenantError

_KEPT: Final = 50
_STORIES: Final = 16
_AGAIN_S: Final = 1.0


class Feed:
    """Keeps a Snapshot fresh and calls `changed` whenever there is a new one, from one of its threads.

    While no daemon answers, the last answers stay, with what is wrong; it is asked on and on.
    """

    def __init__(self, daemon: Daemon, interval_s: float, changed: Callable[[], None]) -> None:
        self._daemon = daemon
        self._interval_s = interval_s
        self._changed = changed
        self._decisions: deque[Mapping[str, Any]] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self._soon = threading.Event()
        self._stopped = threading.Event()
        self.snapshot = Snapshot()

    def start(self) -> None:
        """Begin to ask and to follow."""
        for work in (self._ask, self._follow):
            threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()
        self._soon.set()

    def refresh(self) -> None:
        """Ask at once: something was ordered."""
        self._soon.set()

    def read(self) -> Snapshot:
        """Ask for everything once. Raises DaemonSilent and what the daemon refuses."""
        models = self._daemon.get("/api/models")["models"]
        stories = [] if self._decisions else self._stories(models)
        with self._lock:
            if not self._decisions:
                self._decisions.extend(stories)
            decisions = tuple(self._decisions)
        return Snapshot(
            models=models,
            devices=self._daemon.get("/api/devices")["devices"],
            tokens_per_s=_last_rates(self._daemon.get("/api/history")),
            alerts=self._daemon.get("/api/alerts")["active"],
            decisions=decisions,
            taken_at=time.strftime("%H:%M:%S"),
        )

    def _stories(self, models: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return what was decided before anybody followed, of the models that were asked for."""
        asked = [model["name"] for model in models if model.get("loads")][:_STORIES]
        told = [each for name in asked for each in self._daemon.get(model_path(name, "why"))["decisions"]]
        return sorted(told, key=lambda each: int(each["number"]))[-_KEPT:]

    def _ask(self) -> None:
        while not self._stopped.is_set():
            try:
                self.snapshot = self.read()
            except CotenantError as error:
                self.snapshot = replace(self.snapshot, problem=f"trying again: {error.message}")
            self._changed()
            self._soon.wait(self._interval_s)
            self._soon.clear()

    def _follow(self) -> None:
        while not self._stopped.is_set():
            try:
                for event in _events(self._daemon.stream("/api/events")):
                    self._remember(event)
                    self.refresh()
            except (CotenantError, OSError):
                # The other thread says what is wrong.
                pass
            if self._stopped.wait(_AGAIN_S):
                return
            # A daemon that was started anew counts its decisions from the beginning.
            with self._lock:
                self._decisions.clear()

    def _remember(self, event: Mapping[str, Any]) -> None:
        """Keep a decision; what came with the stories already, and other events, are left out."""
        with self._lock:
            known = {each["number"] for each in self._decisions}
            if "number" in event and event["number"] not in known:
                self._decisions.append(event)


def _events(pieces: Iterator[bytes]) -> Iterator[Mapping[str, Any]]:
    """Read server-sent events; what is no JSON object is left out."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                try:
                    told = json.loads(line[6:])
                except ValueError:
                    continue
                if isinstance(told, dict):
                    yield told


def _last_rates(history: Mapping[str, Any]) -> Mapping[str, float]:
    rates = {}
    for model in history["models"]:
        curve = model["tokens_per_s"]
        if curve and curve[-1] is not None:
            rates[model["name"]] = curve[-1]
    return rates
