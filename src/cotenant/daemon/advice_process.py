"""Searches for better settings for the recorded requests, in a process of its own: a replay takes minutes."""

import asyncio
import base64
import json
import os
import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from cotenant.config.configuration import AdvisorSettings, Configuration, ServerSettings
from cotenant.daemon.core.fleet import Fleet
from cotenant.daemon.workload import Workload, advice_as_json, recorded
from cotenant.domain.advisors import AdviceStatus
from cotenant.domain.devices import Inventory
from cotenant.domain.errors import CotenantError
from cotenant.domain.records import PastRuns
from cotenant.engines.process.guard import die_with_parent
from cotenant.programs.run import run_async
from cotenant.simulation.advise import advise

_TIME_LIMIT_S: Final = 900.0
_NICENESS: Final = 10


@dataclass(slots=True)
class AdviceProcess:
    """A WorkloadAdviser for the configuration that is served, the cards and the requests of its log.

    One search runs at a time. The API's keys are not passed to it.
    """

    configuration: Callable[[], Configuration]
    cards: Callable[[], Inventory | None]
    past: PastRuns
    by_engine: bool = False
    _status: AdviceStatus = field(default_factory=AdviceStatus)
    _running: asyncio.Task[None] | None = None

    def status(self) -> AdviceStatus:
        """Return the last search, or why none can begin."""
        if self._status.state == "idle":
            return replace(self._status, message=_obstacle(self.configuration()))
        return self._status

    def start(self) -> AdviceStatus:
        """Begin a search, unless one is running or none can begin."""
        configuration, cards = self.configuration(), self.cards()
        running = self._running is not None and not self._running.done()
        if running or cards is None or _obstacle(configuration):
            return self.status()
        bare = replace(configuration, server=ServerSettings(), advisor=AdvisorSettings(), services=None)
        given = configuration.server.request_log, bare, cards, self.past, self.by_engine
        self._status = AdviceStatus("running", time.time(), advice=self._status.advice)
        self._running = asyncio.get_running_loop().create_task(self._run(given))
        return self._status

    async def close(self) -> None:
        """End a search that is running."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})

    async def _run(self, given: tuple[object, ...]) -> None:
        argv = [sys.executable, "-m", "cotenant.daemon.advice_process", str(os.getpid())]
        packed = base64.b64encode(pickle.dumps(given)).decode()
        ended = await run_async(argv, _TIME_LIMIT_S, input_text=packed)
        if ended.ok:
            found: Any = json.loads(ended.output)
            self._status = replace(self._status, state="done", finished_at=time.time(), advice=found)
        else:
            self._status = replace(
                self._status, state="failed", finished_at=time.time(), message=ended.reason
            )


def _obstacle(configuration: Configuration) -> str:
    """Return why requests are not recorded; empty if they are."""
    recording = configuration.server.request_log is not None
    return "" if recording else "No requests are recorded: set server.request_log in the configuration."


def _search(
    log: Path, configuration: Configuration, cards: Inventory, past: PastRuns, by_engine: bool
) -> dict[str, Any]:
    names = Fleet.of(configuration.models).names
    trace = recorded(log)
    found = () if trace is None else trace.requests
    requests = [replace(r, model=names[r.model]) for r in found if r.model in names]
    left_out = Counter(request.model for request in found if request.model not in names)
    workload = Workload(requests, configuration, cards, past, by_engine=by_engine)
    return advice_as_json(advise(workload.variant, workload.dimensions, requests), workload, left_out)


def main() -> None:
    """Read what to search from standard input, which only the daemon writes, and print the advice as JSON."""
    die_with_parent(int(sys.argv[1]))
    os.nice(_NICENESS)
    given = pickle.loads(base64.b64decode(sys.stdin.read()))  # noqa: S301
    try:
        sys.stdout.write(json.dumps(_search(*given)))
    except CotenantError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
