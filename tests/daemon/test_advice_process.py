"""A search for better settings beside the daemon: what it is given, one at a time, and how it ends."""

import asyncio
import json
import os
from pathlib import Path

import yaml

from cotenant.clock import ManualClock
from cotenant.config.settings import read_configuration
from cotenant.daemon.advice_process import AdviceProcess
from cotenant.demo_model import write_demo_model
from cotenant.domain.records import PastRuns
from cotenant.hardware.gpus.inventory import probe
from cotenant.interfaces import AdviceStatus

DEADLINE_S = 120.0


def adviser(folder: Path, *, log: bool = True) -> AdviceProcess:
    """Return that of a daemon with a model that is unloaded before its next request."""
    write_demo_model(folder / "ada.gguf")
    settings = {
        "models": [{"name": "ada", "path": str(folder / "ada.gguf")}],
        "defaults": {"keep_alive": "20s", "ctx": 512},
        "devices": {"gpus": "4GiB", "reserve_mib": 100},
        "server": {"request_log": str(folder / "requests.jsonl"), "api_keys": ["hidden"]} if log else {},
    }
    path = folder / "cotenant.yaml"
    path.write_text(yaml.safe_dump(settings))
    configuration, cards = read_configuration(path), probe("4GiB", ManualClock()).inventory()
    return AdviceProcess(lambda: configuration, lambda: cards, PastRuns())


def record(folder: Path, count: int) -> None:
    lines = (
        json.dumps({"at": 1.7e9 + 25 * n, "model": "ada", "status": 200, "service_s": 1.0}) + "\n"
        for n in range(count)
    )
    (folder / "requests.jsonl").write_text("".join(lines))


async def ended(searching: AdviceProcess) -> AdviceStatus:
    async with asyncio.timeout(DEADLINE_S):
        while searching.status().state == "running":
            await asyncio.sleep(0.01)
    return searching.status()


async def test_recorded_requests_are_replayed_in_a_process_of_its_own(tmp_path: Path):
    record(tmp_path, 200)
    searching = adviser(tmp_path)
    assert searching.start().state == "running"
    first = searching.status()
    assert searching.start() == first, "one at a time"
    status = await ended(searching)
    assert (status.state, status.message) == ("done", "")
    assert status.advice is not None
    assert status.advice["yaml"] == "defaults:\n  keep_alive: 30s  # now 20s\n"
    assert searching.start().advice == status.advice, "the last result stays until the next"
    await searching.close()


async def test_without_recorded_requests_it_says_why_none_can_begin(tmp_path: Path):
    assert adviser(tmp_path, log=False).start().message.startswith("No requests are recorded: set server.")


async def test_before_the_first_request_the_log_is_not_enough(tmp_path: Path):
    searching = adviser(tmp_path)
    searching.start()
    status = await ended(searching)
    assert status.advice is not None
    assert str(status.advice["text"]).startswith("Not enough log: 0 requests")


async def test_a_log_that_cannot_be_read_is_told_in_one_line(tmp_path: Path):
    (tmp_path / "requests.jsonl").write_text('{"at": 1, "model": "ada", "service_s": 1}\nno json\n')
    searching = adviser(tmp_path)
    searching.start()
    status = await ended(searching)
    assert status.state == "failed"
    assert status.message.endswith("requests.jsonl line 2 is not a JSON object")


async def test_the_process_ends_with_the_daemon(tmp_path: Path):
    record(tmp_path, 3000)
    searching = adviser(tmp_path)
    searching.start()
    async with asyncio.timeout(DEADLINE_S):
        while not (found := children()):
            await asyncio.sleep(0.01)
    await searching.close()
    assert not children() & found


def children() -> set[int]:
    """Return the searches that this process has started."""
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:
            continue
        if "cotenant.daemon.advice_process" in line and str(os.getpid()) in line:
            found.add(int(pid))
    return found
