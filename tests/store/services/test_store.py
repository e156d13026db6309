import asyncio
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cotenant.domain.devices import DeviceId
from cotenant.domain.errors import GeneratedFileFailed, StoreError
from cotenant.domain.units import MIB
from cotenant.services.interfaces import ServiceStore
from cotenant.services.model import (
    ApplyState,
    ApplyStatus,
    Assignment,
    GpuRef,
    ProgressState,
    SavedConfiguration,
    SeenDevice,
    ServiceProgress,
    Strategy,
)
from cotenant.store.store import Store
from cotenant.store.writer import Writer
from tests.store.harness import Place, locked, opened, run_sql

A5500, A400 = DeviceId("GPU-a5500"), DeviceId("GPU-a400")
LLM = Assignment("ai-llm", 0, A5500)
ENRICHMENT = Assignment("ai-enrichment", 1, A400, 3.5)
UNPINNED = Assignment("ai-clip")
CARDS = (
    SeenDevice(0, A5500, "NVIDIA RTX A5500", 24564 * MIB, 5260 * MIB, "8.6", 1_700_000_000.0),
    SeenDevice(1, A400, "NVIDIA RTX A400", 4094 * MIB, None, None, 1_700_000_000.0),
)


def nothing(number: int) -> None:
    pass


def ended(number: int, state: ApplyState = ApplyState.FAILED) -> ApplyStatus:
    services = (
        ServiceProgress("ai-llm", ProgressState.HEALTHY, 0, "c0ffee"),
        ServiceProgress("ai-enrichment", ProgressState.FAILED, 1, None, "unresolvable CDI devices"),
    )
    return ApplyStatus(number, state, 10.5, 12.25, services, "ai-enrichment failed")


def test_there_is_no_configuration_before_the_first_is_saved(place: Place) -> None:
    async def scenario(store: Store) -> None:
        assert await store.services.current() is None
        assert await store.services.history() == []
        assert await store.services.devices() == []
        assert "gpu_assignment_strategy" not in await store.services.settings()

    opened(place, scenario)


def test_a_configuration_outlives_the_run_in_the_order_of_its_services(place: Place) -> None:
    given = (ENRICHMENT, LLM, UNPINNED)

    async def save(store: Store) -> SavedConfiguration:
        return await store.services.save(Strategy.VRAM_BASED, given, 1_700_000_000.125, nothing)

    saved = opened(place, save)
    assert saved == SavedConfiguration(1, 1_700_000_000.125, Strategy.VRAM_BASED, given)
    assert opened(place, lambda store: store.services.current()) == saved


def test_gpus_after_the_first_are_kept_and_follow_a_renumbering(place: Place) -> None:
    given = replace(LLM, more=(GpuRef(2, DeviceId("GPU-c")), GpuRef(None, DeviceId("GPU-gone"))), count=3)

    async def scenario(store: Store) -> None:
        await store.services.save(Strategy.MANUAL, (given, UNPINNED), 1.0, nothing)
        current = await store.services.current()
        assert current is not None
        assert current.assignments == (given, UNPINNED)
        assert current.assignments[0].count == 3
        await store.services.see_devices([SeenDevice(5, DeviceId("GPU-c"), None, None, None, None, 2.0)])
        current = await store.services.current()
        assert current is not None
        assert [gpu.gpu_index for gpu in current.assignments[0].more] == [5, None]
        assert current.assignments[1] == UNPINNED

    opened(place, scenario)


def test_a_service_that_is_left_out_is_no_longer_configured_and_comes_back_when_saved_again(
    place: Place,
) -> None:
    async def scenario(store: Store) -> None:
        book: ServiceStore = store.services
        await book.save(Strategy.MANUAL, [LLM, ENRICHMENT], 1.0, nothing)
        await book.save(Strategy.MANUAL, [LLM], 2.0, nothing)
        current = await book.current()
        assert current is not None
        assert current.assignments == (LLM,)
        await book.save(Strategy.MANUAL, [ENRICHMENT, LLM], 3.0, nothing)
        current = await book.current()
        assert current is not None
        assert current.assignments == (ENRICHMENT, LLM)

    opened(place, scenario)


def test_history_is_newest_first_and_keeps_how_each_apply_ended(place: Place) -> None:
    async def scenario(store: Store) -> None:
        for number, strategy in enumerate(Strategy, start=1):
            await store.services.save(strategy, [LLM, ENRICHMENT], float(number), nothing)
        await store.services.record_apply(2, ended(1, ApplyState.RUNNING))
        await store.services.record_apply(2, ended(1))
        found = await store.services.history(4)
        assert [entry.number for entry in found] == [5, 4, 3, 2]
        assert [entry.strategy for entry in found] == list(Strategy)[:0:-1]
        assert [entry.apply for entry in found] == [None, None, None, ended(1)]
        assert found[-1].assignments == (LLM, ENRICHMENT)

    opened(place, scenario)


def test_what_was_applied_and_how_the_last_apply_stands_is_found_among_all(place: Place) -> None:
    async def scenario(store: Store) -> None:
        book, done = store.services, ApplyState.SUCCEEDED
        assert (await book.applied(), await book.last_apply()) == (None, None)
        for number in range(1, 5):
            await book.save(Strategy.MANUAL, [LLM], float(number), nothing)
        await book.record_apply(1, ended(1, done))
        await book.record_apply(2, ended(2, done))
        await book.record_apply(3, ended(3))
        applied = await book.applied()
        assert applied is not None
        assert (applied.number, applied.apply, applied.assignments) == (2, ended(2, done), (LLM,))
        assert await book.last_apply() == ended(3)

    opened(place, scenario)


def test_the_current_configuration_tells_how_its_apply_stands(place: Place) -> None:
    async def scenario(store: Store) -> None:
        await store.services.save(Strategy.MANUAL, [LLM], 1.0, nothing)
        await store.services.record_apply(1, ended(7))
        current = await store.services.current()
        assert current is not None
        assert current.apply == ended(7)

    opened(place, scenario)


def test_an_apply_of_a_configuration_that_is_not_there_is_told(place: Place) -> None:
    async def scenario(store: Store) -> None:
        with pytest.raises(StoreError, match="configuration 3"):
            await store.services.record_apply(3, ended(1))

    opened(place, scenario)


def test_files_that_cannot_be_written_leave_the_former_configuration(place: Place) -> None:
    fault = GeneratedFileFailed("no space left", hint="free some")

    def publish(number: int) -> None:
        assert number == 2
        raise fault

    async def scenario(store: Store) -> None:
        first = await store.services.save(Strategy.MANUAL, [LLM], 1.0, nothing)
        with pytest.raises(GeneratedFileFailed) as caught:
            await store.services.save(Strategy.BALANCED, [ENRICHMENT], 2.0, publish)
        assert caught.value is fault
        assert await store.services.current() == first
        assert await store.services.history() == [first]

    opened(place, scenario)


def test_files_are_published_before_anyone_sees_the_configuration_and_under_its_number(
    place: Place,
) -> None:
    published = list[int]()

    async def scenario(store: Store) -> None:
        for at in (1.0, 2.0):
            saved = await store.services.save(Strategy.MANUAL, [LLM], at, published.append)
            assert published[-1] == saved.number

    opened(place, scenario)
    assert published == [1, 2]


@pytest.mark.slow
def test_a_crash_between_publishing_and_writing_leaves_the_former_configuration(place: Place) -> None:
    program = f"""
import os
from pathlib import PosixPath
from cotenant.services.model import Strategy
from tests.store.harness import opened
from tests.store.services.test_store import ENRICHMENT
opened({place!r}, lambda s: s.services.save(Strategy.BALANCED, [ENRICHMENT], 2.0, lambda number: os._exit(7)))
"""

    async def save(store: Store) -> SavedConfiguration:
        return await store.services.save(Strategy.MANUAL, [LLM], 1.0, nothing)

    first = opened(place, save)
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 7
    assert opened(place, lambda store: store.services.current()) == first
    assert opened(place, save).number == 2


def test_saves_at_once_come_one_after_another_whoever_makes_them(place: Place) -> None:
    published = list[int]()

    async def scenario(one: Store) -> None:
        other = Store(await asyncio.to_thread(Writer, place))
        try:
            books = [one.services, other.services] * 5
            saved = await asyncio.gather(
                *(
                    book.save(Strategy.MANUAL, [replace(LLM, gpu_index=turn)], float(turn), published.append)
                    for turn, book in enumerate(books)
                )
            )
            assert published == sorted(each.number for each in saved) == list(range(1, 11))
            last = max(saved, key=lambda each: each.number)
            assert await one.services.current() == await other.services.current() == last
        finally:
            await other.close()

    opened(place, scenario)


def test_devices_are_kept_when_gone_and_followed_when_renumbered(place: Place) -> None:
    async def scenario(store: Store) -> None:
        book = store.services
        await book.see_devices(CARDS)
        assert await book.devices() == list(CARDS)
        later = replace(CARDS[0], available_bytes=1 * MIB, last_seen_at=1_700_000_100.5)
        await book.see_devices([later])
        assert await book.devices() == [later, CARDS[1]]
        swapped = [replace(CARDS[0], gpu_index=1), replace(CARDS[1], gpu_index=0)]
        await book.see_devices(swapped)
        assert await book.devices() == swapped[::-1]
        await book.see_devices([replace(CARDS[1], gpu_index=2)])
        assert [device.gpu_index for device in await book.devices()] == [1, 2]

    opened(place, scenario)


def test_an_assignment_follows_its_card_and_comes_alive_when_the_card_returns(place: Place) -> None:
    async def scenario(store: Store) -> None:
        book = store.services
        missing = replace(ENRICHMENT, gpu_index=None)
        await book.save(Strategy.MANUAL, [LLM, missing], 1.0, nothing)
        await book.see_devices([CARDS[0]])
        assert await assignments(store) == (LLM, missing)
        await book.see_devices([replace(CARDS[0], gpu_index=3), CARDS[1]])
        assert await assignments(store) == (replace(LLM, gpu_index=3), ENRICHMENT)
        await book.see_devices([])
        assert await assignments(store) == (replace(LLM, gpu_index=3), ENRICHMENT)

    opened(place, scenario)


async def assignments(store: Store) -> Sequence[Assignment]:
    current = await store.services.current()
    assert current is not None
    return current.assignments


def test_settings_hold_any_json_and_are_replaced(place: Place) -> None:
    async def scenario(store: Store) -> None:
        for value in ({"default": "vram_based"}, {"a": [1, None, {"ü": 2.5}], "b": False}):
            await store.services.set_setting("gpu_assignment_strategy", value)
            assert (await store.services.settings())["gpu_assignment_strategy"] == value
        assert "other" not in await store.services.settings()

    opened(place, scenario)


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_a_name_that_the_table_cannot_hold_is_refused_everywhere(place: Place, name: str) -> None:
    async def scenario(store: Store) -> None:
        with pytest.raises(StoreError, match="1 to 64"):
            await store.services.save(Strategy.MANUAL, [LLM, Assignment(name)], 1.0, nothing)
        with pytest.raises(StoreError, match="twice"):
            await store.services.save(Strategy.MANUAL, [LLM, LLM], 1.0, nothing)
        assert await store.services.current() is None

    opened(place, scenario)


def test_a_database_that_is_held_is_told_and_loses_nothing_silently(place: Place) -> None:
    async def scenario(store: Store) -> None:
        with locked(place, "gpu_configurations"), pytest.raises(StoreError, match="lock"):
            await store.services.save(Strategy.MANUAL, [LLM], 1.0, nothing)
        assert (await store.services.save(Strategy.MANUAL, [LLM], 1.0, nothing)).number == 1

    opened(place, scenario, busy_timeout_s=0.05)


def test_what_comes_after_closing_raises(place: Place) -> None:
    async def scenario() -> None:
        store = Store(await asyncio.to_thread(Writer, place))
        await store.close()
        with pytest.raises(StoreError, match="closed"):
            await store.services.current()
        await store.close()

    asyncio.run(scenario())


def test_rows_written_by_hand_get_the_documents_defaults(place: Place) -> None:
    async def begin(store: Store) -> None:
        await store.services.save(Strategy.MANUAL, [LLM], 1.0, nothing)

    opened(place, begin)
    run_sql(
        place,
        "INSERT INTO gpu_configurations (service_name, gpu_index) VALUES ('by-hand', 1)",
        "INSERT INTO gpu_devices (gpu_index, device_id) VALUES (4, 'GPU-4')",
        "INSERT INTO system_settings (key, value) VALUES ('k', '{\"v\": 1}')",
    )

    async def look(store: Store) -> None:
        assert set(await assignments(store)) == {LLM, Assignment("by-hand", 1)}
        (device,) = await store.services.devices()
        assert device.last_seen_at > 1_700_000_000
        assert (await store.services.settings())["k"] == {"v": 1}

    opened(place, look)


names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=64)
anything = st.builds(
    Assignment,
    names,
    st.none() | st.integers(0, 2**31 - 1),
    st.none() | st.from_regex(r"GPU-[0-9a-f]{8}", fullmatch=True).map(DeviceId),
    st.none() | st.floats(0, 1e6),
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    saves=st.lists(
        st.tuples(
            st.sampled_from(Strategy), st.lists(anything, max_size=6, unique_by=lambda each: each.service)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_is_saved_last_is_what_is_read(
    place: Place, saves: list[tuple[Strategy, list[Assignment]]]
) -> None:
    async def scenario(store: Store) -> None:
        for strategy, given_ in saves:
            saved = await store.services.save(strategy, given_, 1.5, nothing)
            assert saved.assignments == tuple(given_)
            assert await store.services.current() == saved
        newest = await store.services.history(len(saves))
        assert [entry.assignments for entry in newest] == [tuple(given_) for _, given_ in saves[::-1]]

    opened(place, scenario)
