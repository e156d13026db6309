"""How soon models load on machines: what they have reported, what loads took, and what follows from it."""

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cotenant.config.values.nodes import NodePull
from cotenant.daemon.monitors.recorder import Recorder
from cotenant.daemon.nodes.load_times import LoadTimes
from cotenant.domain.decisions import DecisionKind
from cotenant.domain.errors import DoesNotFit
from cotenant.domain.nodes import FileState, LoadCost
from cotenant.domain.records import LoadRecord, Warmth
from cotenant.domain.units import GIB
from cotenant.hardware.model_cache.page_cache import drop, resident_bytes
from cotenant.nodes.file_messages import FileStatus
from cotenant.nodes.messages import FilesSeen
from tests.support.agents import AgentProcess
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.nodes.agent_fleet import Running, daemon, machine
from tests.support.waiting import until

MODEL = Path("/proc/self/cwd/tiny.gguf")
"""A path that is the same on all machines, and another file on each: that in the folder it was started in."""


@contextmanager
def machines(folder: Path, *names: str, having: str) -> Iterator[dict[str, AgentProcess]]:
    """Machines of which those in `having` have the model's file."""
    with ExitStack() as stack:
        found = {}
        for name in names:
            (folder / name).mkdir()
            if name in having:
                shutil.copy(MODEL, folder / name)
            found[name] = stack.enter_context(machine(folder / name, name, cwd=folder / name))
        yield found


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "daemon").mkdir()
    monkeypatch.chdir(tmp_path / "daemon")
    build_tiny_llama(Path("tiny.gguf"))


def size_of(path: Path) -> int:
    return path.stat().st_size


def costs(run: Running) -> dict[str, LoadCost]:
    return dict(run.parts.operator.statuses()[0].load_costs)


@pytest.mark.slow
async def test_a_model_loads_where_its_file_is_and_why_says_what_it_would_take_elsewhere(
    tmp_path: Path,
) -> None:
    with machines(tmp_path, "c", "b", having="b") as agents:
        async with daemon(agents, MODEL, pull=NodePull.DAEMON) as run:
            await until(lambda: len(costs(run)) == 2)
            found = costs(run)
            assert found["b"].state in (FileState.WARM, FileState.LOCAL)
            assert found["c"].state is FileState.ABSENT
            assert found["c"].seconds is not None, "it would be fetched"
            records: list[object] = []
            journal: Any = SimpleNamespace(record=records.append)
            run.parts.loop.feed.listeners.append(Recorder(journal, run.parts.view).decided)
            drop(MODEL)
            await run.parts.operator.load("m")
            assert run.parts.operator.statuses()[0].node == "b"
            (load,) = [each for each in records if isinstance(each, LoadRecord)]
            was_warm = found["b"].state is FileState.WARM
            assert load.warmth is (Warmth.WARM if was_warm else Warmth.COLD), "as b's file was, not ours"
            (ready,) = [d for d in run.parts.operator.why("m") if d.kind is DecisionKind.READY]
            await until(lambda: costs(run)["b"].seconds == float(f"{ready.facts['load_s']:.2g}"))


@pytest.mark.slow
async def test_a_refusal_names_the_machines_without_the_file_until_one_has_it(tmp_path: Path) -> None:
    with machines(tmp_path, "b", "c", having="") as agents:
        async with daemon(agents, MODEL) as run:
            await until(lambda: len(costs(run)) == 2)
            with pytest.raises(DoesNotFit) as refused:
                await run.parts.operator.load("m")
            assert f"; b, c: no file {MODEL}, and `nodes.pull` is never" in refused.value.message
            shutil.copy(MODEL, tmp_path / "c")
            # As its agent reports it, which looks every ten seconds.
            run.load_costs.seen("c", FilesSeen((FileStatus(MODEL, FileState.LOCAL, size_of(MODEL)),)))
            await run.parts.operator.load("m")
            assert run.parts.operator.statuses()[0].node == "c"
            told = [d for d in run.parts.operator.why("m") if d.kind is DecisionKind.LOAD][-1].text
            assert told.endswith("; where its files are: c: local, 1.0 s; b: absent")


@pytest.mark.slow
async def test_a_file_that_does_not_fit_on_a_machines_disk_is_not_fetched_there(tmp_path: Path) -> None:
    with machines(tmp_path, "b", having="") as agents:
        async with daemon(agents, MODEL, pull=NodePull.DAEMON) as run:
            await until(lambda: len(costs(run)) == 1)
            run.load_costs.seen("b", FilesSeen((FileStatus(MODEL, FileState.ABSENT, room_bytes=100),)))
            assert "which has 100 B free" in costs(run)["b"].why
            with pytest.raises(DoesNotFit, match=r"b: no file .* do not fit on the disk there"):
                await run.parts.operator.load("m")
            run.load_costs.lost("b")
            assert costs(run) == {}


@pytest.mark.slow
async def test_another_file_of_the_same_name_is_never_served_and_is_replaced_if_asked(tmp_path: Path) -> None:
    with machines(tmp_path, "b", having="b") as agents:
        with (tmp_path / "b" / MODEL.name).open("ab") as file:
            file.write(b"more")
        async with daemon(agents, MODEL, pull=NodePull.DAEMON) as run:
            await until(lambda: "b" in costs(run) and costs(run)["b"].seconds is None)
            assert costs(run)["b"].text == "different"
            with pytest.raises(DoesNotFit, match=r"; b: another file .*tiny.gguf: .* there, "):
                await run.parts.operator.load("m")
            [_ async for _ in run.files.order(run.host("b"), "m", [MODEL])]
            await until(lambda: costs(run)["b"].seconds is not None)
            await run.parts.operator.load("m")
            assert size_of(tmp_path / "b" / MODEL.name) == size_of(MODEL)


@pytest.mark.slow
async def test_what_an_operator_has_fetched_is_seen_to_be_there_at_once(tmp_path: Path) -> None:
    with machines(tmp_path, "b", having="") as agents:
        async with daemon(agents, MODEL) as run:
            await until(lambda: len(costs(run)) == 1)
            steps = [step async for step in run.files.order(run.host("b"), "m", [MODEL])]
            assert steps[-1].files == (str(MODEL),)
            await until(lambda: costs(run)["b"].state is not FileState.ABSENT)
            await run.parts.operator.load("m")


def test_loads_are_estimated_by_bytes_until_they_were_measured() -> None:
    times, size = LoadTimes(), 20 * GIB
    order = [FileState.WARM, FileState.LOCAL, FileState.SHARED]
    guessed = [times.load_s("m", "b", state, size) for state in order]
    assert guessed == sorted(guessed)
    times.learn("m", "b", FileState.LOCAL, size, 2.0)
    assert times.load_s("m", "b", FileState.LOCAL, size) == 2.0
    assert times.load_s("m", "b", FileState.WARM, size) == 2.0, "no slower than from the disk"
    assert times.load_s("n", "b", FileState.LOCAL, size // 2) == 1.0, "by the rate of that machine"
    assert times.load_s("m", "c", FileState.LOCAL, size) == guessed[1]
    times.learn("m", "b", FileState.LOCAL, size, 4.0)
    assert times.load_s("m", "b", FileState.LOCAL, size) == 3.0
    before = times.fetch_s("b", size)
    times.learn_rate("b", FileState.ABSENT, 4 * GIB, 4.0)
    assert times.fetch_s("b", size) == pytest.approx(21.0)
    assert times.fetch_s("c", size) == before


def test_small_loads_say_nothing_of_much_larger_ones_and_large_ones_more_than_small_ones() -> None:
    times, usual = LoadTimes(), LoadTimes()
    times.learn("tiny", "b", FileState.WARM, GIB // 256, 2.0)
    assert times.load_s("m", "b", FileState.WARM, GIB) == usual.load_s("m", "b", FileState.WARM, GIB)
    times.learn("large", "b", FileState.WARM, 8 * GIB, 4.0)
    times.learn("tiny", "b", FileState.WARM, GIB // 256, 2.0)
    assert times.load_s("m", "b", FileState.WARM, 16 * GIB) == pytest.approx(8.0)
    times.learn("larger", "b", FileState.WARM, 12 * GIB, 12.0)
    assert times.load_s("m", "b", FileState.WARM, 12 * GIB) == pytest.approx(8.0), "both count"


def test_what_was_learned_is_known_in_the_next_run() -> None:
    times, size = LoadTimes(), 4 * GIB
    times.learn("m", "b", FileState.LOCAL, size, 3.0)
    times.learn_rate("b", FileState.ABSENT, GIB, 10.0)
    after = LoadTimes()
    after.remember(json.loads(json.dumps(times.as_json())))
    for each in (times, after):
        assert each.load_s("m", "b", FileState.LOCAL, size) == 3.0
        assert each.load_s("n", "b", FileState.LOCAL, 2 * size) == 6.0
        assert each.fetch_s("b", GIB) == pytest.approx(11.0)
    for broken in ({"seconds": [["m", "b"]]}, {"rates": [["b", "odd", 1, 1]]}, {"seconds": 3}):
        after.remember(broken)
        assert after.load_s("m", "b", FileState.LOCAL, size) == 3.0


@pytest.mark.slow
async def test_of_machines_that_have_the_file_that_one_loads_it_that_has_it_in_ram(tmp_path: Path) -> None:
    with machines(tmp_path, "b", "c", having="bc") as agents:
        if await asyncio.to_thread(made_cold, tmp_path / "b" / MODEL.name):
            pytest.skip("this file system keeps its files in RAM")
        await asyncio.to_thread((tmp_path / "c" / MODEL.name).read_bytes)
        async with daemon(agents, MODEL) as run:
            # As slow as what is tiny never is.
            run.load_costs.times.learn_rate("b", FileState.LOCAL, size_of(MODEL), 20.0)
            await until(lambda: len(costs(run)) == 2)
            assert {node: cost.text for node, cost in costs(run).items()} == {
                "b": "local, 20.0 s",
                "c": "warm, 1.0 s",
            }
            await run.parts.operator.load("m")
            (load,) = [d for d in run.parts.operator.why("m") if d.kind is DecisionKind.LOAD]
            assert load.text.startswith("loading on c GPU 0")
            assert load.text.endswith("; where its files are: c: warm, 1.0 s; b: local, 20.0 s")


def made_cold(file: Path) -> int | None:
    """Drop a file from the page cache; how much of it stays."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    drop(file)
    return resident_bytes(file)
