"""Polls the daemon for `cotenant top`, in its own threads."""

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


class Feed:
    """Keeps a Snapshot up to date and calls `changed` for each new one, from one of its threads.

    While no daemon answers, the last snapshot stays, with the problem, and the feed retries.
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
        """Start polling and following."""
        for work in (self._poll, self._follow):
            threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        """Stop polling."""
        self._stopped.set()
        self._soon.set()

    def refresh(self) -> None:
        """Poll at once."""
        self._soon.set()

    def read(self) -> Snapshot:
        """Fetch everything once. Raises DaemonSilent, or an error of the daemon."""
        tenants = self._daemon.get("/api/models")
        models = [*tenants["models"], *tenants["leases"]]
        earlier = [] if self._decisions else self._past_decisions(models)
        with self._lock:
            if not self._decisions:
                self._decisions.extend(earlier)
            decisions = tuple(self._decisions)
        devices = self._daemon.get("/api/devices")
        curves = {each["name"]: each["tokens_per_s"] for each in self._daemon.get("/api/history")["models"]}
        return Snapshot(
            models=models,
            devices=devices["devices"],
            fragmentation=devices.get("fragmentation"),
            tokens_per_s={
                name: curve[-1] for name, curve in curves.items() if curve and curve[-1] is not None
            },
            alerts=self._daemon.get("/api/alerts")["active"],
            decisions=decisions,
            taken_at=time.strftime("%H:%M:%S"),
        )

    def _past_decisions(self, models: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return earlier decisions about the models that were ever loaded."""
        names = [model["name"] for model in models if model.get("loads")][:16]
        found = [each for name in names for each in self._daemon.get(model_path(name, "why"))["decisions"]]
        return sorted(found, key=lambda each: int(each["number"]))[-_KEPT:]

    def _poll(self) -> None:
        while not self._stopped.is_set():
            try:
                self.snapshot = self.read()
            except CotenantError as error:
                self.snapshot = replace(self.snapshot, problem=f"retrying: {error.message}")
            self._changed()
            self._soon.wait(self._interval_s)
            self._soon.clear()

    def _follow(self) -> None:
        while not self._stopped.is_set():
            try:
                for event in _events(self._daemon.stream("/api/events")):
                    with self._lock:
                        known = {each["number"] for each in self._decisions}
                        if "number" in event and event["number"] not in known:
                            self._decisions.append(event)
                    self.refresh()
            except (CotenantError, OSError):
                # The polling thread reports the problem.
                pass
            if self._stopped.wait(1.0):
                return
            # A restarted daemon numbers its decisions from 1 again.
            with self._lock:
                self._decisions.clear()


def _events(pieces: Iterator[bytes]) -> Iterator[Mapping[str, Any]]:
    """Parse server-sent events; data that is no JSON object is ignored."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                try:
                    event = json.loads(line[6:])
                except ValueError:
                    continue
                if isinstance(event, dict):
                    yield event
