import asyncio
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.domain.devices import DeviceId
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.errors import StoreError
from cotenant.domain.records import LoadRecord, ModelOnEngine, Warmth
from cotenant.domain.units import MIB
from cotenant.services.model import Assignment, SavedConfiguration, SeenDevice, Strategy
from cotenant.store.backup import Outcome, RestoreResult, read_backup
from cotenant.store.location import locate
from cotenant.store.maintenance import back_up, restore
from cotenant.store.store import Store
from cotenant.store.writer import Writer
from tests.store.harness import FOOTPRINT, Place, locked, opened
from tests.store.services.test_store import A400, A5500, CARDS, ENRICHMENT, LLM, UNPINNED, ended, nothing

BY_INDEX = Assignment("ai-yolo", 1)
NOWHERE = Assignment("ai-lost", 7)
NEW = SeenDevice(0, DeviceId("GPU-new"), "NVIDIA L4", 23034 * MIB, 22000 * MIB, "8.9", 5.0)
A400_NOW = replace(CARDS[1], gpu_index=2, last_seen_at=5.0)


def fill(place: Place) -> None:
    """Have everything in a database that a backup keeps."""

    async def scenario(store: Store) -> None:
        await store.services.see_devices(CARDS)
        await store.services.save(Strategy.MANUAL, [LLM], 1.0, nothing)
        await store.services.record_apply(1, ended(1))
        await store.services.save(
            Strategy.VRAM_BASED, [LLM, ENRICHMENT, UNPINNED, BY_INDEX, NOWHERE], 2.0, nothing
        )
        await store.services.set_setting("gpu_assignment_strategy", {"default": "vram_based"})
        store.journal.record(FOOTPRINT)
        store.journal.record(replace(FOOTPRINT, at=3.0, reported=None, engine=None))
        store.journal.record(LoadRecord(1.0, "llama", 4.5, 1 << 30, Warmth.COLD))

    opened(place, scenario)


def current(place: Place) -> SavedConfiguration:
    found = opened(place, lambda store: store.services.current())
    assert found is not None
    return found


def put_back(place: Place, file: Path, *here: SeenDevice, **options: Any) -> RestoreResult:
    return restore(locate(place), file, here, **options)


EXAMPLE = {
    "format": "cotenant-backup",
    "version": 1,
    "program": "0.1.0",
    "created_at": "2026-11-20T10:00:00+00:00",
    "devices": [
        {
            "gpu_index": 0,
            "device_id": A5500,
            "name": "NVIDIA RTX A5500",
            "total_bytes": 24564 * MIB,
            "available_bytes": None,
            "compute_capability": "8.6",
            "last_seen_at": 1.0,
        }
    ],
    "configuration": {
        "number": 1,
        "at": 1.0,
        "strategy": "manual",
        "assignments": [{"service": "a", "gpu_index": 0, "device_id": A5500, "vram_budget_gb": 3.5}],
        "apply": None,
    },
    "history": [
        {
            "number": 1,
            "at": 1.0,
            "strategy": "manual",
            "assignments": [{"service": "a", "gpu_index": 0, "device_id": None, "vram_budget_gb": None}],
            "apply": None,
        }
    ],
    "settings": {"key": {"value": 1}},
    "footprints": [],
    "loads": [{"at": 1.0, "model": "llama", "seconds": 4.5, "bytes": 5, "warmth": "cold"}],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A backup of one machine with an A5500 and an A400."""
    source = tmp_path / "source.db"
    fill(source)
    path = tmp_path / "backup.json"
    back_up(locate(source), path)
    return path


def test_a_restore_on_other_gpus_keeps_what_is_there_by_uuid_and_marks_the_rest(
    place: Place, file: Path
) -> None:
    done = put_back(place, file, NEW, A400_NOW)
    assert [(each.before.service, each.outcome, each.name) for each in done.assignments] == [
        ("ai-llm", Outcome.MISSING, "NVIDIA RTX A5500"),
        ("ai-enrichment", Outcome.KEPT, "NVIDIA RTX A400"),
        ("ai-clip", Outcome.UNPINNED, None),
        ("ai-yolo", Outcome.KEPT, "NVIDIA RTX A400"),
        ("ai-lost", Outcome.UNKNOWN, None),
    ]
    found = current(place)
    assert found.strategy is Strategy.VRAM_BASED
    assert found.assignments == (
        replace(LLM, gpu_index=None),
        replace(ENRICHMENT, gpu_index=2),
        UNPINNED,
        replace(BY_INDEX, gpu_index=2, device_id=A400),
        replace(NOWHERE, gpu_index=None),
    )


def test_a_marked_assignment_comes_alive_when_its_card_is_seen(place: Place, file: Path) -> None:
    put_back(place, file, NEW)

    async def scenario(store: Store) -> None:
        await store.services.see_devices([NEW, replace(CARDS[0], gpu_index=1)])

    opened(place, scenario)
    assert current(place).assignments[0] == replace(LLM, gpu_index=1)


def test_a_restore_brings_history_settings_and_what_was_learned_but_no_apply(
    place: Place, file: Path
) -> None:
    done = put_back(place, file, *CARDS)
    assert (done.number, done.settings, done.learned) == (3, 1, 3)

    async def look(store: Store) -> None:
        history = await store.services.history()
        assert [(entry.number, entry.apply) for entry in history] == [(3, None), (2, None), (1, None)]
        assert history[2].assignments == (LLM,)
        assert (await store.services.settings())["gpu_assignment_strategy"] == {"default": "vram_based"}
        past = await store.journal.past_runs(0)
        assert past.load_times == await from_source(store)
        assert past.errors == {ModelOnEngine("llama", EngineKind.LLAMA_CPP): pytest.approx(202 / 1460)}
        assert await store.services.devices() == list(CARDS)

    async def from_source(store: Store) -> object:
        other = Store(await asyncio.to_thread(Writer, file.with_name("source.db")))
        try:
            return (await other.journal.past_runs(0)).load_times
        finally:
            await other.close()

    opened(place, look)


def test_a_backup_of_a_restored_database_holds_the_same(place: Place, file: Path, tmp_path: Path) -> None:
    put_back(place, file, *CARDS)
    again = tmp_path / "again.json.gz"
    back_up(locate(place), again)
    before, after = read_backup(file), read_backup(again)
    assert after.footprints == before.footprints
    assert after.loads == before.loads
    assert after.settings == before.settings
    assert after.devices == before.devices
    assert before.configuration is not None
    assert after.configuration is not None
    assert after.configuration.strategy == before.configuration.strategy
    assert gzip.decompress(again.read_bytes()).startswith(b"{")


def test_a_configuration_is_not_overwritten_unless_it_is_kept_safe(
    place: Place, file: Path, tmp_path: Path
) -> None:
    async def begin(store: Store) -> None:
        await store.services.save(Strategy.BALANCED, [UNPINNED], 9.0, nothing)

    opened(place, begin)
    with pytest.raises(StoreError, match="already") as caught:
        put_back(place, file, *CARDS)
    assert "--force" in caught.value.hint
    assert current(place).assignments == (UNPINNED,)
    safe = tmp_path / "safe" / "before.json"
    assert put_back(place, file, *CARDS, replaced=safe).number == 2
    assert current(place).assignments[0] == LLM
    kept = read_backup(safe).configuration
    assert kept is not None
    assert kept.assignments == (UNPINNED,)

    async def look(store: Store) -> None:
        assert [entry.strategy for entry in await store.services.history()] == [
            Strategy.VRAM_BASED,
            Strategy.BALANCED,
        ]

    opened(place, look)


def test_what_cannot_be_kept_safe_is_not_replaced(place: Place, file: Path, tmp_path: Path) -> None:
    fill(place)
    before = current(place)
    with pytest.raises(StoreError, match="cannot be written"):
        put_back(place, file, *CARDS, replaced=file / "no-folder" / "safe.json")
    assert current(place) == before


def test_a_restore_that_fails_leaves_nothing_behind(place: Place, file: Path) -> None:
    edit(file, lambda document: document["configuration"]["assignments"].append({**ROW, "service": "x" * 99}))
    with pytest.raises(StoreError, match="1 to 64"):
        put_back(place, file, *CARDS)

    async def look(store: Store) -> None:
        assert await store.services.history() == []
        assert await store.services.devices() == []
        assert "gpu_assignment_strategy" not in await store.services.settings()

    opened(place, look)


def test_a_running_daemon_sees_a_restore_at_its_next_look(place: Place, file: Path) -> None:
    async def scenario(store: Store) -> None:
        assert await store.services.current() is None
        await asyncio.to_thread(put_back, place, file, *CARDS)
        found = await store.services.current()
        assert found is not None
        assert found.assignments[0] == LLM

    opened(place, scenario)


def test_restoring_twice_learns_nothing_twice(place: Place, file: Path, tmp_path: Path) -> None:
    assert put_back(place, file, *CARDS).learned == 3
    assert put_back(place, file, *CARDS, replaced=tmp_path / "safe.json").learned == 0


def test_a_backup_without_a_configuration_replaces_none(place: Place, tmp_path: Path) -> None:
    empty, file = tmp_path / "empty.db", tmp_path / "backup.json"

    async def begin(store: Store) -> None:
        store.journal.record(FOOTPRINT)

    opened(empty, begin)
    back_up(locate(empty), file)
    fill(place)
    done = put_back(place, file, *CARDS)
    assert (done.number, done.learned) == (None, 0)
    assert current(place).assignments[0] == LLM


def test_a_backup_is_not_written_over_another_unasked(tmp_path: Path, file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(StoreError, match="already exists"):
        back_up(locate(tmp_path / "source.db"), file)
    assert file.read_bytes() == before
    back_up(locate(tmp_path / "source.db"), file, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir() if "backup" in path.name) == ["backup.json"]


def test_a_database_that_does_not_exist_is_not_made_by_a_backup(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database"):
        back_up(locate(tmp_path / "no.db"), tmp_path / "backup.json")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_database_is_neither_moved_nor_backed_up_as_empty(tmp_path: Path) -> None:
    path = tmp_path / "cotenant.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="damaged"):
        back_up(locate(path), tmp_path / "backup.json")
    assert list(tmp_path.iterdir()) == [path]


ROW = {"service": "a", "gpu_index": None, "device_id": None, "vram_budget_gb": None}


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(file.read_text(encoding="utf-8"))
    change(document)
    file.write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(format="other"), "not a backup of Cotenant"),
        (lambda d: d.pop("format"), "not a backup of Cotenant"),
        (lambda d: d.update(version=2), "format 2"),
        (lambda d: d.update(version="1"), "version"),
        (lambda d: d.pop("history"), "history"),
        (lambda d: d["configuration"].update(strategy="other"), "configuration.strategy"),
        (lambda d: d["configuration"].update(assignments=[{**ROW, "gpu_index": "0"}]), "gpu_index"),
        (lambda d: d["configuration"].update(at=float("inf")), "out of range"),
        (lambda d: d["history"][0].update(number=10**30), "out of range"),
        (lambda d: d["history"][0].update(number=0), "numbered"),
        (lambda d: d["history"].reverse(), "numbered"),
        (lambda d: d.update(settings=[]), "settings"),
        (lambda d: d["footprints"][0].update(predicted={"weights": "1"}), "footprints.0.predicted"),
    ],
)
def test_a_broken_foreign_or_newer_backup_is_one_clear_line(
    tmp_path: Path, file: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    edit(file, change)
    with pytest.raises(StoreError, match=told) as caught:
        put_back(tmp_path / "new.db", file, *CARDS)
    assert str(file) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        json.dumps(EXAMPLE).replace("4.5", "1e999").encode(),
        b"[" * 100_000,
        b"\x1f\x8b\x08broken",
        gzip.compress(b"{}", mtime=0)[:-4],
        b"NaN",
    ],
)
def test_a_file_that_is_no_backup_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(StoreError) as caught:
        read_backup(path)
    assert caught.value.message.startswith(str(path))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        read_backup(tmp_path / name)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_change_of_one_value_makes_anything_but_a_clear_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "backup.json"
    path.write_text(json.dumps(EXAMPLE), encoding="utf-8")
    document = json.loads(path.read_text(encoding="utf-8"))
    at: Any = document
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(st.sampled_from([None, "", "x", -1, 0, 2**70, 1.5, True, [], {}, "\x00", "x" * 200]))
    path.write_text(json.dumps(document), encoding="utf-8")
    told = ""
    try:
        put_back(path.with_name("new.db"), path, *CARDS)
    except StoreError as error:
        told = error.message
    assert "\n" not in told


def test_a_backup_waits_for_no_lock_forever(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cotenant.store.maintenance._BUSY_TIMEOUT_S", 0.02)
    source = tmp_path / "source.db"
    with locked(source), pytest.raises(StoreError, match="locked"):
        back_up(locate(source), tmp_path / "other.json")
