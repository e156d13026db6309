"""The books of saved slots: bounded, valued, private, erased."""

import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.engines.process.slot_store import SlotStore, erase, memory_folder

KEY, OTHER = "a" * 32, "b" * 32


def keep(store: SlotStore, size: int, prefill_s: float, key: str = KEY) -> Path:
    """Save a slot as an engine would; there must be room."""
    dropped = store.make_room(size, prefill_s)
    assert dropped is not None
    erase(slot.path for slot in dropped)
    path = store.folder_of(key) / store.next_name()
    path.write_bytes(b"x")
    store.add(key, path, 100, size, prefill_s)
    return path


@pytest.fixture
def store(tmp_path: Path) -> SlotStore:
    return SlotStore.open(tmp_path, 100)


def test_what_spares_the_least_prefill_by_byte_goes_first(store: SlotStore) -> None:
    cheap, dear, later = keep(store, 40, 4.0), keep(store, 30, 9.0, OTHER), keep(store, 30, 3.0)
    assert store.used_bytes == 100
    assert store.make_room(50, 4.9) is None
    newest = keep(store, 50, 10.0)
    assert [path.exists() for path in (cheap, dear, later, newest)] == [False, True, False, True]


def test_of_equal_ones_the_later_stays(store: SlotStore) -> None:
    first, second = keep(store, 50, 5.0), keep(store, 50, 5.0)
    third = keep(store, 50, 5.0)
    assert [path.exists() for path in (first, second, third)] == [False, True, True]


def test_host_ram_bounds_it_and_shrinks_it(store: SlotStore) -> None:
    keep(store, 40, 4.0)
    store.room = lambda: 20
    assert store.make_room(70, 1.0) is None
    keep(store, 20, 2.0)
    store.room = lambda: -30
    assert [slot.size for slot in store.shrink()] == [40]
    store.room = lambda: -1000
    assert [slot.size for slot in store.shrink()] == [20]
    assert not store.shrink()
    assert store.make_room(1, 1.0) is None


def test_slots_fit_only_their_own_key_the_last_first(store: SlotStore) -> None:
    paths = [keep(store, 10, 1.0) for _ in range(3)]
    keep(store, 10, 1.0, OTHER)
    assert [slot.path for slot in store.take(KEY, 2)] == [paths[2], paths[1]]
    assert [slot.path for slot in store.take(KEY, 2)] == [paths[0]]
    assert not store.take(KEY, 2)
    assert store.used_bytes == 10


def test_only_its_account_may_enter_and_the_end_erases_it(store: SlotStore) -> None:
    path = keep(store, 10, 1.0)
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert path.parent.stat().st_mode & 0o777 == 0o700
    store.close()
    assert not store.folder.exists()
    assert store.make_room(1, 9.9) is None


def test_what_a_killed_daemon_left_is_erased_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    living = SlotStore.open(tmp_path, 100)
    keep(living, 10, 1.0)
    dead = tmp_path / "cotenant-slots-dead"
    (dead / KEY).mkdir(parents=True)
    (dead / "lock").touch()
    (tmp_path / "cotenant-slots-new").mkdir()
    SlotStore.open(tmp_path, 100)
    assert living.folder.exists()
    assert not dead.exists()
    # One that has no lock yet is just being made.
    assert (tmp_path / "cotenant-slots-new").exists()
    with (living.folder / "lock").open("rb") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_only_a_folder_in_ram_is_taken_by_default(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"none {tmp_path} tmpfs rw 0 0\n")
    assert memory_folder(mounts, tmp_path) == tmp_path
    mounts.write_text(f"none {tmp_path} ext4 rw 0 0\n")
    assert memory_folder(mounts, tmp_path) is None
    assert memory_folder(tmp_path / "missing", tmp_path) is None
    assert os.access(tmp_path, os.W_OK)


@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0.01, 100)), max_size=20), st.integers(0, 100))
def test_it_never_holds_more_than_it_may_and_drops_nothing_more_valuable(
    slots: list[tuple[int, float]], most: int
) -> None:
    store = SlotStore(Path("/"), most)
    for number, (size, prefill_s) in enumerate(slots):
        before = dict(store.slots)
        dropped = store.make_room(size, prefill_s)
        if dropped is None:
            assert store.slots == before
            needed = [slot.size for slot in before.values() if slot.value[0] > prefill_s / size]
            assert sum(needed) + size > most
            continue
        assert all(slot.value[0] <= prefill_s / size for slot in dropped)
        store.add(KEY, Path(f"{number}.slot"), 1, size, prefill_s)
        assert store.used_bytes <= most
