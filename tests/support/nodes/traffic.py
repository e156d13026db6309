"""Clients that ask at a steady rate through the `openai` client, and what became of each request."""

import asyncio
import itertools
import statistics
import threading
import time
from dataclasses import dataclass, field

import openai

from tests.support.nodes.daemon import Daemon
from tests.support.waiting import wait_until


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: when it was asked and when it ended, and why it failed, empty if it was answered."""

    began: float
    ended: float
    failure: str = ""

    @property
    def took_s(self) -> float:
        """Return how long its client waited."""
        return self.ended - self.began


@dataclass(slots=True)
class Traffic:
    """Asks a model `per_s` times a second, each request once: its client does not ask again.

    Nobody asks while `most` requests wait, fewer than a queue holds, so that none is refused for slowness.

    If they ask `again`, they do so while nobody listens at the daemon's address, as clients of a service that
    is started again do.
    """

    daemon: Daemon
    model: str
    per_s: float = 20.0
    again: bool = False
    most: int = 200
    ends: list[Asked] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "Traffic":
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(90)

    @property
    def failures(self) -> list[str]:
        """Why requests failed."""
        return [each.failure for each in self.ends if each.failure]

    def until_flowing(self, count: int = 20) -> None:
        """Return when so many more were answered."""
        before = len(self.ends)
        wait_until(lambda: len(self.ends) >= before + count)

    def longest_gap_s(self) -> float:
        """Return the longest time in which nothing was answered."""
        good = sorted(each.ended for each in self.ends if not each.failure)
        return max((b - a for a, b in itertools.pairwise(good)), default=0.0)

    def slowest_s(self) -> float:
        """Return the longest time that a client waited for its answer."""
        return max((each.took_s for each in self.ends), default=0.0)

    def p99_s(self, since: float, until: float) -> float:
        """Return the 99th percentile of how long requests took that were asked between two instants."""
        took = [each.took_s for each in self.ends if since <= each.began < until]
        return statistics.quantiles(took, n=100)[98] if len(took) > 1 else float("nan")

    async def _run(self) -> None:
        url = f"{self.daemon.url}/v1"
        async with (
            openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=80) as client,
            asyncio.TaskGroup() as asking,
        ):
            due, waiting = time.monotonic(), set[asyncio.Task[None]]()
            while not self._stop.is_set():
                if len(waiting) < self.most:
                    task = asking.create_task(self._ask(client))
                    waiting.add(task)
                    task.add_done_callback(waiting.discard)
                due += 1 / self.per_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _ask(self, client: openai.AsyncOpenAI) -> None:
        began, failure = time.monotonic(), None
        while failure is None:
            try:
                await client.chat.completions.create(
                    model=self.model, messages=[{"role": "user", "content": "hi"}], max_tokens=4
                )
                failure = ""
            except openai.APIConnectionError as error:
                if self.again and not isinstance(error, openai.APITimeoutError):
                    await asyncio.sleep(0.1)
                    continue
                failure = f"{error}: {error.__cause__!r}"
            except openai.OpenAIError as error:
                failure = str(error)
        self.ends.append(Asked(began, time.monotonic(), failure))
