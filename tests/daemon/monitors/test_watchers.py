import asyncio
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cotenant.clock import ManualClock, SystemClock
from cotenant.config.configuration import Configuration, DeviceSettings, ModelEntry, Problem, ServerSettings
from cotenant.config.settings import read_configuration
from cotenant.config.watch import Change
from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.core.settings import ApiKeys
from cotenant.daemon.monitors import watchers
from cotenant.daemon.monitors.attribution import EngineUsage
from cotenant.daemon.monitors.watchers import CardWatcher
from cotenant.domain.devices import (
    HOST_ID,
    Device,
    DeviceId,
    DeviceKind,
    GpuProcess,
    Inventory,
    Reading,
)
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.errors import BadSetting
from cotenant.domain.keys import flat_key
from cotenant.domain.models import Recipe
from cotenant.domain.units import GIB
from cotenant.domain.vendors import InventorySource
from cotenant.planning.budgets import BudgetRules
from cotenant.scheduling.events import DevicesRead, ModelsChanged
from tests.support.models.shapes import dense
from tests.support.waiting import until


@dataclass
class Posted:
    """Keeps the events that it is told."""

    events: list[object] = field(default_factory=list)
    effects: object = field(default_factory=lambda: SimpleNamespace(pids=dict, running={}))

    def post(self, event: object) -> None:
        self.events.append(event)

    def record_readings(self, readings: object) -> None:
        pass

    def serve(self, models: object, changed: ModelsChanged, groups: object = ()) -> None:
        self.events.append(changed)


def watching(probe: object, posted: Posted, *use: str) -> CardWatcher:
    return CardWatcher(probe, use, BudgetRules(), posted, posted, SystemClock())  # type: ignore[arg-type]


def cards(*indices: int, source: InventorySource = InventorySource.NVML) -> Inventory:
    devices = [Device(DeviceId(f"GPU-{i}"), DeviceKind.GPU, "card", i, 24 * GIB) for i in indices]
    readings = {device.id: Reading(device.id, 0.0, free_bytes=20 * GIB, processes=()) for device in devices}
    return Inventory(source, tuple(devices), readings)


async def seen(inventories: list[Inventory], *use: str) -> list[list[str]]:
    """Watch one inventory after the other; return the devices told each time."""
    posted, rest = Posted(), iter(inventories)
    probe = SimpleNamespace(inventory=lambda: next(rest))
    watcher = watching(probe, posted, *use)
    watcher.read(next(rest))
    for _ in inventories[1:]:
        await watcher.read_once()
    told = [event for event in posted.events if isinstance(event, DevicesRead)]
    return [[str(reading.device.id) for reading in event.readings] for event in told]


async def test_a_card_that_goes_and_comes_back_is_told_both_times() -> None:
    assert await seen([cards(0, 1), cards(1), cards(0, 1)], "GPU-0", "GPU-1") == [
        ["GPU-0", "GPU-1"],
        ["GPU-1"],
        ["GPU-0", "GPU-1"],
    ]


async def test_cards_that_were_not_allowed_at_the_start_stay_out() -> None:
    assert await seen([cards(1), cards(0, 1)], "GPU-1") == [["GPU-1"], ["GPU-1"]]


async def test_without_a_driver_there_are_no_cards_and_never_host_ram_in_their_place() -> None:
    host = Device(HOST_ID, DeviceKind.HOST, "host RAM", total_bytes=GIB)
    gone = Inventory(InventorySource.HOST, (host,), {HOST_ID: Reading(HOST_ID, 0.0, free_bytes=GIB)})
    assert await seen([cards(0), gone]) == [["GPU-0"], []]


async def test_what_slept_is_not_foreign_while_the_driver_still_lists_it() -> None:
    """Its engine has ended and has no group any more, but its memory is about to be free."""
    listed = replace(
        cards(0).readings[DeviceId("GPU-0")], processes=(GpuProcess(4_000_001, "VLLM", 4 * GIB),)
    )
    sleeping = replace(cards(0), readings={DeviceId("GPU-0"): listed})
    # It ends during the first read; the second still shows it, the third does not, the fourth another's.
    inventories = iter([sleeping, sleeping, cards(0), sleeping])
    posted, usage = Posted(), EngineUsage(asleep=frozenset({4_000_001}))

    def inventory() -> Inventory:
        nonlocal usage
        usage = EngineUsage()
        return next(inventories)

    watcher = CardWatcher(
        SimpleNamespace(inventory=inventory),  # type: ignore[arg-type]
        (),
        BudgetRules(),
        posted,  # type: ignore[arg-type]
        posted,  # type: ignore[arg-type]
        SystemClock(),
        usage=lambda: usage,
    )
    for _ in range(4):
        await watcher.read_once()
    foreign = [event.readings[0].foreign_bytes for event in posted.events if isinstance(event, DevicesRead)]
    assert foreign == [0, 0, 4 * GIB, 4 * GIB]


class Stirring(Posted):
    """A loop whose memory is awaited or not, and whose engines change when told."""

    def __init__(self, *, reclaims: bool) -> None:
        super().__init__()
        self.reclaiming = reclaims
        self.changed = asyncio.Event()

    def is_reclaiming(self) -> bool:
        return self.reclaiming

    async def memory_changed(self) -> None:
        await self.changed.wait()
        self.changed.clear()


async def looks(posted: Stirring, count: int) -> None:
    """Run a watcher until the cards have been told so many times."""
    probe = SimpleNamespace(inventory=lambda: cards(0))
    watcher = watching(probe, posted)
    watcher.read(cards(0))
    running = asyncio.create_task(watcher.run())
    try:
        async with asyncio.timeout(60):
            while len(posted.events) < count:
                await asyncio.sleep(0.005)
    finally:
        running.cancel()


@pytest.mark.slow
async def test_memory_that_is_awaited_is_looked_for_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "_BUSY_S", 3600)
    monkeypatch.setattr(watchers, "_QUIET_S", 3600)
    await looks(Stirring(reclaims=True), count=6)


@pytest.mark.slow
async def test_cards_are_read_at_once_when_an_engine_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "_BUSY_S", 3600)
    monkeypatch.setattr(watchers, "_QUIET_S", 3600)
    posted = Stirring(reclaims=False)
    posted.changed.set()
    await looks(posted, count=2)
    assert not posted.changed.is_set()


def test_a_driver_that_hangs_does_not_keep_the_daemon_from_ending() -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> Inventory:
        hangs.set()
        assert goes_on.wait(300)
        return cards(0)

    async def watch_for_a_moment() -> None:
        probe, posted = SimpleNamespace(inventory=hang), Stirring(reclaims=True)
        watcher = watching(probe, posted)
        watcher.read(cards(0))
        running = asyncio.create_task(watcher.run())
        assert await asyncio.to_thread(hangs.wait, 60)
        running.cancel()

    daemon = threading.Thread(target=asyncio.run, args=(watch_for_a_moment(),))
    daemon.start()
    daemon.join(60)
    hung = daemon.is_alive()
    goes_on.set()
    daemon.join(60)
    assert not hung


def entry(name: str, **facts: object) -> ModelEntry:
    return ModelEntry(name, Path(name), Recipe(), dense(1, GIB), (), (), **facts)  # type: ignore[arg-type]


async def test_a_reload_touches_what_changed_and_keeps_what_was_learned() -> None:
    learned = DeviceSettings(rules=BudgetRules(overheads={(EngineKind.LLAMA_CPP, "card"): 1}))
    old = Configuration(devices=learned, models=(entry("same"), entry("other")))
    new = Configuration(models=(entry("same"), replace(entry("other"), recipe=Recipe(n_ctx=512))))
    posted = Posted()
    served = ActiveConfiguration(old, lambda change: new, posted, ManualClock())  # type: ignore[arg-type]
    assert await served.reload(Change()) == ("other changed: it is loaded again",)
    (changed,) = posted.events
    assert isinstance(changed, ModelsChanged)
    assert changed.replaced == {"other"}
    assert served.configuration.devices.rules.overheads == learned.rules.overheads


async def test_what_was_read_first_never_takes_the_place_of_what_was_read_last() -> None:
    """A signal, a file's change, an order and a pull may all have it read again at the same time."""
    old, new = (Configuration(models=(entry(name),)) for name in ("old", "new"))
    begun, go_on = threading.Event(), threading.Event()
    reads = iter([old, new])

    def read(change: Change) -> Configuration:
        found = next(reads)
        if found is old:
            begun.set()
            assert go_on.wait(10)
        return found

    served = ActiveConfiguration(Configuration(), read, Posted(), ManualClock())  # type: ignore[arg-type]
    first = asyncio.create_task(served.reload(Change()))
    await asyncio.to_thread(begun.wait, 60)
    second = asyncio.create_task(served.reload(Change()))
    # As long as the second would need if nothing held it up.
    await asyncio.wait([second], timeout=0.05)
    go_on.set()
    await asyncio.gather(first, second)
    assert [each.name for each in served.configuration.models] == ["new"]


async def test_without_a_file_there_is_nothing_to_read_again() -> None:
    served = ActiveConfiguration(Configuration(), None, Posted(), ManualClock())  # type: ignore[arg-type]
    with pytest.raises(BadSetting, match="no configuration file"):
        await served.reload()


async def test_a_key_is_revoked_though_the_configuration_is_invalid(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\nkept")
    server = ServerSettings(api_key_file=file)

    def invalid(change: Change) -> Configuration:
        raise BadSetting("a model is missing")

    served = ActiveConfiguration(
        Configuration(server=server),
        invalid,
        Posted(),  # type: ignore[arg-type]
        ManualClock(),
        keys=ApiKeys(server),
    )
    file.write_text("kept")
    with pytest.raises(BadSetting, match="a model is missing"):
        await served.reload()
    assert served.keys.current == (flat_key("kept"),)


async def test_a_bad_file_that_comes_while_serving_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = Configuration(problems=(Problem(tmp_path / "cut.gguf", "it ends early"),))
    served = ActiveConfiguration(
        Configuration(),
        lambda change: bad,
        Posted(),  # type: ignore[arg-type]
        ManualClock(),
    )
    for _ in range(2):
        assert await served.reload() == ()
    assert [record.message for record in caplog.records] == [f"{tmp_path}/cut.gguf: it ends early"]


@pytest.mark.parametrize("text", ["", "# all gone\n", "x-a: 1"])
async def test_a_file_that_becomes_empty_changes_nothing(text: str, tmp_path: Path) -> None:
    file = tmp_path / "cotenant.yaml"
    file.write_text("server: {port: 1}")
    first = read_configuration(file, environment={})
    served = ActiveConfiguration(
        first,
        lambda change: read_configuration(file, environment={}),
        Posted(),  # type: ignore[arg-type]
        ManualClock(),
    )
    file.write_text(text)
    with pytest.raises(BadSetting, match=r"cotenant\.yaml has become empty"):
        await served.reload()
    assert served.configuration is first
    file.write_text("models: []")
    assert await served.reload()


async def test_one_model_without_a_file_has_its_keys_read_again(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old")
    server = ServerSettings(api_key_file=file)
    served = ActiveConfiguration(
        Configuration(server=server),
        None,
        Posted(),  # type: ignore[arg-type]
        ManualClock(),
        keys=ApiKeys(server),
    )
    file.write_text("new")
    assert await served.reload() == ("API keys changed: 1 revoked, 1 added",)
    assert served.keys.current == (flat_key("new"),)


@pytest.mark.slow
async def test_a_file_that_only_the_reading_saw_is_missed_once_it_is_gone(tmp_path: Path) -> None:
    """It came after one look at the folder and went before the next: only the configuration knows of it."""
    file = tmp_path / "brief.gguf"
    brief = replace(entry("brief"), path=file, parts=(file,), from_folder=True)
    read = [Configuration(models_dir=tmp_path), Configuration(models_dir=tmp_path, models=(brief,))]
    served = ActiveConfiguration(
        Configuration(models_dir=tmp_path),
        lambda change: read.pop() if len(read) > 1 else read[0],
        Posted(),  # type: ignore[arg-type]
        SystemClock(),
    )
    watching_files = asyncio.create_task(served.watch())
    await until(lambda: served.models == (brief,))
    await until(lambda: served.models == ())
    watching_files.cancel()
