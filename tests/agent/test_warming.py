"""Files that an agent reads into the RAM of its machine, as the daemon says."""

from pathlib import Path

from cotenant.agent.events import EventLog
from cotenant.agent.warming import Warming
from cotenant.clock import SystemClock
from cotenant.hardware.model_cache.page_cache import resident_bytes
from cotenant.nodes.file_messages import Warm
from cotenant.nodes.messages import FilesWarmed
from tests.hardware.model_cache.test_warm import SIZE, cold_file
from tests.support.waiting import DEADLINE_S


class Bench:
    """What it reads, and reports; `over` is why it may not, `changes` how often something was read."""

    def __init__(self) -> None:
        self.events = EventLog()
        self.after = self.events.last
        self.over: str | None = None
        self.changes = 0
        self.warming = Warming(SystemClock(), self.events, lambda: self.over, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    async def done(self) -> FilesWarmed:
        (event,) = (await self.events.after(self.after, DEADLINE_S, lambda: 0.0)).events
        assert isinstance(event, FilesWarmed)
        self.after = event.seq
        return event


async def test_files_are_read_into_ram_and_given_back(tmp_path: Path) -> None:
    bench, file = Bench(), cold_file(tmp_path / "m")
    await bench.warming.begin(Warm(1, 7, (file,), "it is likely wanted next", at_idle=True))
    done = await bench.done()
    assert (done.number, done.covered_bytes, done.read_bytes, done.stopped) == (7, SIZE, SIZE, None)
    assert resident_bytes(file) == SIZE
    await bench.warming.forget((file,))
    assert resident_bytes(file) == 0
    assert bench.changes == 2


async def test_half_of_a_file_is_read_if_there_is_room_for_half(tmp_path: Path) -> None:
    bench, file = Bench(), cold_file(tmp_path / "m")
    await bench.warming.begin(Warm(1, 7, (file,), "it is likely wanted next", SIZE // 2))
    done = await bench.done()
    assert (done.covered_bytes, done.total_bytes) == (SIZE // 2, SIZE)


async def test_nothing_is_read_once_no_daemon_commands_the_machine(tmp_path: Path) -> None:
    bench, file = Bench(), cold_file(tmp_path / "m")
    bench.over = "no daemon has renewed its lease"
    await bench.warming.begin(Warm(1, 7, (file,), "it is likely wanted next"))
    assert (await bench.done()).stopped == bench.over
    assert resident_bytes(file) == 0


async def test_a_new_pass_ends_the_one_before_and_an_order_ends_both(tmp_path: Path) -> None:
    bench, files = Bench(), [cold_file(tmp_path / name) for name in "ab"]
    await bench.warming.begin(Warm(1, 1, (files[0],), "first"))
    await bench.warming.begin(Warm(1, 2, (files[1],), "second"))
    await bench.warming.stop("another model is loading")
    done = []
    while not done or done[-1].number != 2:
        found = await bench.events.after(bench.after, DEADLINE_S, lambda: 0.0)
        done += [event for event in found.events if isinstance(event, FilesWarmed)]
        bench.after = done[-1].seq
    assert [each.number for each in done] == [1, 2]
    assert done[0].stopped in (None, "another one begins")
    assert done[1].stopped in (None, "another model is loading")


async def test_the_budget_is_at_most_what_the_daemon_says() -> None:
    warming = Bench().warming
    assert (await warming.budget(1000)).budget_bytes <= 1000
    assert (await warming.budget(None)).budget_bytes >= (await warming.budget(1000)).budget_bytes


async def test_a_file_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    bench = Bench()
    await bench.warming.begin(Warm(1, 7, (tmp_path / "gone.gguf",), "it is likely wanted next"))
    assert "cannot be read" in ((await bench.done()).stopped or "")
    assert bench.changes == 0
