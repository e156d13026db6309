import asyncio
import ctypes
import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cotenant.clock import SystemClock
from cotenant.domain.units import GIB, MIB
from cotenant.hardware.gpus.host import HostMemory
from cotenant.hardware.model_cache import page_cache
from cotenant.hardware.model_cache.page_cache import drop, resident_bytes
from cotenant.hardware.model_cache.read_ahead import BLOCK_BYTES, ReadAhead
from cotenant.hardware.model_cache.warm import WarmTier, forget, presence, read_pressure
from tests.support.waiting import wait_until

SIZE = 4 * MIB
CALM = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"
BUSY = CALM.replace("some avg10=0.00", "some avg10=31.40")


def cold_file(path: Path, size: int = SIZE) -> Path:
    """A file on disk of which no page is in RAM."""
    with path.open("wb") as file:
        file.write(os.urandom(4096) * (size // 4096) + b"\1" * (size % 4096))
        file.flush()
        os.fsync(file.fileno())
    drop(path)
    if resident_bytes(path) != 0:
        pytest.skip("this file system keeps its files in RAM")
    return path


def tier(
    tmp_path: Path, limit: int | None = GIB, memory: Callable[[], HostMemory] | None = None, text: str = CALM
) -> WarmTier:
    (tmp_path / "pressure").write_text(text)
    available = memory or (lambda: HostMemory(64 * GIB, 32 * GIB))
    return WarmTier(limit, SystemClock(), available, floor_bytes=GIB, pressure=tmp_path / "pressure")


@pytest.fixture(params=["cachestat", "mincore"])
def counting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "mincore":
        monkeypatch.setattr(page_cache, "_by_cachestat", lambda *_: None)


@pytest.mark.usefixtures("counting")
def test_a_file_counts_as_resident_by_the_pages_that_were_read(tmp_path: Path) -> None:
    path = cold_file(tmp_path / "model", SIZE + 10)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), 8192, MIB)
        assert resident_bytes(path) == 8192
        assert page_cache.resident_range(file.fileno(), MIB + 4096, 4096) == 4096
        assert page_cache.resident_range(file.fileno(), 2 * MIB, MIB) == 0
    path.read_bytes()
    assert resident_bytes(path) == SIZE + 10


def test_what_cannot_be_opened_is_unknown_and_an_empty_file_is_resident(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert resident_bytes(tmp_path / "none") is None
    assert resident_bytes(tmp_path / "empty") == 0


def test_all_parts_of_a_split_file_are_read_ahead(tmp_path: Path) -> None:
    parts = [cold_file(tmp_path / f"part{number}", size) for number, size in enumerate((SIZE, SIZE // 2 + 7))]
    done = asyncio.run(tier(tmp_path).warm(parts, "asked"))
    total = SIZE + SIZE // 2 + 7
    assert (done.total_bytes, done.covered_bytes, done.read_bytes, done.stopped) == (
        total,
        total,
        total,
        None,
    )
    assert presence(parts) == (total, total)


def test_what_is_in_ram_already_is_not_read_again(tmp_path: Path) -> None:
    path = cold_file(tmp_path / "model")

    def warmed_without_reading() -> bool:
        # The kernel may take a page back in between, which costs a block: then it is tried again.
        path.read_bytes()
        done = asyncio.run(tier(tmp_path).warm([path], "asked"))
        assert done.covered_bytes == SIZE
        return done.read_bytes == 0

    wait_until(warmed_without_reading)


def test_a_part_of_a_file_is_read_from_its_start(tmp_path: Path) -> None:
    path = cold_file(tmp_path / "model", 4 * SIZE)
    done = asyncio.run(tier(tmp_path).warm([path], "asked", limit_bytes=SIZE, at_idle=True))
    assert (done.covered_bytes, done.stopped) == (SIZE, None)
    fd = os.open(path, os.O_RDONLY)
    assert page_cache.resident_range(fd, 0, SIZE) == SIZE
    assert page_cache.resident_range(fd, 3 * SIZE, SIZE) == 0
    os.close(fd)


def test_reads_at_idle_have_the_disk_priority_of_an_idle_process(tmp_path: Path) -> None:
    priorities = []
    path = cold_file(tmp_path / "model")

    def why_not() -> None:
        libc = ctypes.CDLL(None)
        number = {"x86_64": 252, "aarch64": 31}[platform.machine()]
        priorities.append(libc.syscall(number, 1, 0) >> 13)

    asyncio.run(tier(tmp_path).warm([path], "asked", yields_to=why_not, at_idle=True))
    assert priorities
    assert set(priorities) == {3}


@pytest.mark.parametrize(
    ("limit", "available", "budget"),
    [
        (None, 32 * GIB, 16 * GIB),
        (None, GIB + MIB, MIB),
        (8 * GIB, 32 * GIB, 8 * GIB),
        (8 * GIB, 5 * GIB, 4 * GIB),
        (8 * GIB, MIB, 0),
        (8 * GIB, None, 8 * GIB),
        (None, None, 0),
    ],
)
def test_the_budget_leaves_a_floor_of_available_memory(
    tmp_path: Path, limit: int | None, available: int | None, budget: int
) -> None:
    assert tier(tmp_path, limit, lambda: HostMemory(64 * GIB, available)).budget()[0] == budget


@pytest.mark.parametrize(
    ("available", "text", "why"),
    [(GIB - 1, CALM, "memory are available"), (32 * GIB, BUSY, "31 % of the time")],
)
def test_nothing_is_read_under_pressure(tmp_path: Path, available: int, text: str, why: str) -> None:
    path = cold_file(tmp_path / "model")
    pressed = tier(tmp_path, memory=lambda: HostMemory(64 * GIB, available), text=text)
    done = asyncio.run(pressed.warm([path], "asked"))
    assert why in (done.stopped or "")
    assert resident_bytes(path) == 0


def test_reading_ends_when_pressure_comes_in_between(tmp_path: Path) -> None:
    path = cold_file(tmp_path / "model")
    answers = iter([None, None, "tasks wait"])
    reading = ReadAhead(
        [path], stop_reason=lambda: next(answers), reads_in_flight=1, block_bytes=MIB, ask_every_s=0
    )
    reading.start()
    assert reading.wait(5)
    assert (reading.covered_bytes, reading.stopped) == (2 * MIB, "tasks wait")


def test_a_cancelled_reader_returns_at_once_and_issues_no_more_reads(tmp_path: Path) -> None:
    path = cold_file(tmp_path / "model", 8 * SIZE)
    reached, go_on = threading.Event(), threading.Event()

    def memory() -> HostMemory:
        if threading.current_thread().name == "read-ahead":
            reached.set()
            go_on.wait(60)
        return HostMemory(64 * GIB, 32 * GIB)

    async def scenario() -> None:
        task = asyncio.create_task(tier(tmp_path, memory=memory).warm([path], "asked"))
        await asyncio.to_thread(reached.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not go_on.is_set()

    asyncio.run(scenario())
    after_cancel = resident_bytes(path)
    go_on.set()
    wait_until(lambda: all(thread.name != "read-ahead" for thread in threading.enumerate()))
    assert after_cancel is not None
    assert (resident_bytes(path) or 0) <= after_cancel + 3 * BLOCK_BYTES


def test_a_missing_file_is_an_answer_and_not_a_fault(tmp_path: Path) -> None:
    done = asyncio.run(tier(tmp_path).warm([tmp_path / "none"], "asked"))
    assert "none cannot be read: No such file" in (done.stopped or "")


def test_a_part_that_vanishes_ends_the_pass_and_closes_no_one_elses_file(tmp_path: Path) -> None:
    first, second = cold_file(tmp_path / "1"), cold_file(tmp_path / "2")
    reading = ReadAhead([first, second], reads_in_flight=1)
    second.unlink()
    reading.start()
    assert reading.wait(10)
    assert reading.stopped == "it cannot be read: No such file or directory"


def test_a_pass_makes_way_for_what_is_more_urgent(tmp_path: Path) -> None:
    path = cold_file(tmp_path / "model")
    done = asyncio.run(tier(tmp_path).warm([path], "asked", yields_to=lambda: "an engine loads"))
    assert (done.covered_bytes, done.stopped) == (0, "an engine loads")


def test_forgotten_files_leave_ram(tmp_path: Path) -> None:
    path = cold_file(tmp_path / "model")
    asyncio.run(tier(tmp_path).warm([path], "asked"))
    forget([path, tmp_path / "none"])
    assert resident_bytes(path) == 0


@pytest.mark.parametrize(
    ("text", "percent"), [(CALM, 0.0), (BUSY, 31.4), ("", None), ("some avg60=1\n", None), ("\xff", None)]
)
def test_pressure_is_read_where_the_kernel_tells_it(tmp_path: Path, text: str, percent: float | None) -> None:
    (tmp_path / "pressure").write_text(text, encoding="latin-1")
    assert read_pressure(tmp_path / "pressure") == percent
    assert read_pressure(tmp_path / "none") is None
