"""A bounded number of threads: more work is refused, and work that nobody waits for any more never starts."""

import asyncio
import threading

import pytest

from cotenant.concurrency.thread_gate import ThreadGate
from tests.support.waiting import DEADLINE_S, until


class Full(Exception):
    pass


class Work:
    """Work that waits to be let go; `most` is how many pieces of it ran at once."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.started = self.running = self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.started += 1
            self.running += 1
            self.most = max(self.most, self.running)
        assert self.let_go.wait(DEADLINE_S)
        with self._lock:
            self.running -= 1
        return "done"


async def test_no_more_than_the_bound_run_at_once_and_the_rest_wait_or_are_refused():
    gate, work = ThreadGate(Full, running=2, waiting=3), Work()
    asked = [asyncio.ensure_future(gate.run(work)) for _ in range(5)]
    await until(lambda: work.started == 2)
    with pytest.raises(Full):
        await gate.run(work)
    work.let_go.set()
    assert await asyncio.gather(*asked) == ["done"] * 5
    assert (work.started, work.most) == (5, 2)
    assert await gate.run(lambda: "room again") == "room again"


async def test_work_whose_caller_left_while_it_waited_never_starts_and_makes_room():
    gate, work = ThreadGate(Full, running=1, waiting=1), Work()
    first, second = (asyncio.ensure_future(gate.run(work)) for _ in range(2))
    await until(lambda: work.started == 1)
    second.cancel()
    await asyncio.wait([second])
    third = asyncio.ensure_future(gate.run(lambda: "third"))
    work.let_go.set()
    assert (await first, await third, work.started) == ("done", "third", 1)


async def test_work_that_has_started_keeps_its_place_although_its_caller_left():
    gate, work = ThreadGate(Full, running=1, waiting=0), Work()
    left = asyncio.ensure_future(gate.run(work))
    await until(lambda: work.started == 1)
    left.cancel()
    await asyncio.wait([left])
    with pytest.raises(Full):
        await gate.run(work)
    work.let_go.set()
    await until(lambda: gate._room == 1)
    assert await gate.run(lambda: "next") == "next"


async def test_an_error_reaches_its_caller_and_frees_the_place():
    gate = ThreadGate(Full, running=1, waiting=0)

    def fail() -> None:
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            await gate.run(fail)
        await until(lambda: gate._room == 1)
