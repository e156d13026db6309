"""GPU configuration from end to end but for the containers: the database is real."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.clock import ManualClock
from cotenant.domain.devices import Inventory
from cotenant.domain.errors import (
    ApplyRunning,
    BadAssignment,
    ContainerEngineMissing,
    GeneratedFileEdited,
    GeneratedFileFailed,
    NothingToRollBack,
    StoreError,
)
from cotenant.domain.units import GIB, MIB
from cotenant.domain.vendors import InventorySource
from cotenant.hardware.gpus.inventory import probe
from cotenant.services.model import (
    ApplyState,
    ApplyStatus,
    Assignment,
    GpuRef,
    OnFailure,
    SavedConfiguration,
    ServicesSettings,
    Strategy,
    WarningKind,
)
from cotenant.services.operator import Services
from cotenant.store.store import Store
from cotenant.store.writer import Writer
from tests.support.containers.plain_orchestrator import PlainOrchestrator
from tests.support.daemon.plain_service_operator import SERVICES

REFERENCE = "RTX A5500:24564:19304,RTX A400:4094:329"
DEADLINE_S = 60.0


class Setting:
    """The reference hardware and its five services."""

    def __init__(self, store: Store, orchestrator: PlainOrchestrator, on_failure: OnFailure) -> None:
        self.store = store
        self.orchestrator = orchestrator
        self.cards: str | None = REFERENCE
        self.claims: dict[str, int] = {}
        self.settings = ServicesSettings((Path("compose.yml"),), Path("config"), items=SERVICES)
        self.settings = replace(self.settings, on_failure=on_failure)
        self.services = self.anew()

    def anew(self) -> Services:
        return Services(
            self.settings,
            self.store.services,
            self.orchestrator,
            self.look,
            lambda: {device.id: self.claims.get(device.name, 0) for device in self.look().devices},
        )

    def look(self) -> Inventory:
        if self.cards is None:
            return Inventory(InventorySource.HOST, (), {})
        return probe(self.cards, ManualClock()).inventory()

    async def applied(self) -> ApplyStatus:
        await self.services.apply()
        return await self.ended()

    async def ended(self) -> ApplyStatus:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                status, _ = await self.services.status()
                if status is not None and not status.running:
                    return status
                await asyncio.sleep(0)

    async def pinned(self) -> dict[str, int | None]:
        states = await self.orchestrator.containers()
        return {each.service: each.assignment.gpu_index for each in states if each.assignment}


@contextlib.asynccontextmanager
async def setting(tmp_path: Path, on_failure: OnFailure = OnFailure.ROLLBACK) -> AsyncIterator[Setting]:
    store = Store(Writer(tmp_path / "cotenant.db"))
    try:
        made = Setting(store, PlainOrchestrator(*(each.name for each in SERVICES)), on_failure)
        await made.services.start()
        yield made
        await made.services.close()
    finally:
        await store.close()


async def test_the_reference_hardware_gives_the_picture_of_the_document(tmp_path):
    async with setting(tmp_path) as at:
        plan, changes = await at.services.preview(Strategy.VRAM_BASED)
        where = {each.service: each.gpu_index for each in plan.assignments}
        assert where == {
            "ai-llm": 0,
            "ai-yolo26": 0,
            "ai-florence": 0,
            "ai-clip": 1,
            "ai-enrichment": 1,
        }
        (told,) = [each.vram_budget_gb for each in plan.assignments if each.service == "ai-enrichment"]
        assert told == 2.3
        texts = [warning.text for warning in plan.warnings]
        assert "ai-enrichment VRAM budget (6.8 GB) exceeds GPU 1 (4 GB). Auto-adjusted to 2.3 GB." in texts
        assert len(changes) == 5


async def test_what_was_never_saved_is_applied_by_the_strategy_of_the_configuration(tmp_path):
    async with setting(tmp_path) as at:
        assert (await at.applied()).state is ApplyState.SUCCEEDED
        assert (await at.pinned())["ai-enrichment"] == 1
        view = await at.services.view()
        assert view.applied is not None
        assert view.saved is not None
        assert view.applied.number == view.saved.number


async def test_only_services_that_changed_are_recreated(tmp_path):
    async with setting(tmp_path) as at:
        await at.applied()
        saved = (await at.services.view()).saved
        assert saved is not None
        moved = [replace(each, device_id=None) for each in saved.assignments if each.service != "ai-clip"]
        await at.services.save(Strategy.MANUAL, [*moved, Assignment("ai-clip", 0)])
        await at.applied()
        # The service that stays gets a larger budget.
        assert [each.name for each in at.orchestrator.orders[-1].changed] == ["ai-clip", "ai-enrichment"]
        await at.applied()
        assert at.orchestrator.orders[-1].changed == []


async def test_a_service_on_several_gpus_is_applied_and_rolled_back(tmp_path):
    async with setting(tmp_path) as at:
        await at.services.save(Strategy.MANUAL, [Assignment("ai-clip", 0), Assignment("ai-llm", 0)])
        await at.applied()
        await at.services.save(Strategy.MANUAL, [Assignment("ai-clip", count="all"), Assignment("ai-llm", 0)])
        assert [change.service for change in (await at.services.view()).changes] == ["ai-clip"]
        await at.applied()
        assert [service.name for service in at.orchestrator.orders[-1].changed] == ["ai-clip"]
        assert at.orchestrator.states["ai-clip"].assignment.indices == (0, 1)
        assert (await at.services.view()).changes == ()
        await at.services.rollback()
        await at.ended()
        assert at.orchestrator.states["ai-clip"].assignment.indices == (0,)
        current = await at.store.services.current()
        assert {each.service: each.indices for each in current.assignments}["ai-clip"] == (0,)


async def test_user_assigns_same_gpu_to_all(tmp_path):
    async with setting(tmp_path) as at:
        plan = await at.services.save(Strategy.MANUAL, [Assignment(each.name, 0) for each in SERVICES])
        assert {each.gpu_index for each in plan.assignments} == {0}
        assert WarningKind.COMBINED_EXCEEDS_GPU in {warning.kind for warning in plan.warnings}


@pytest.mark.parametrize(
    ("assignments", "field"),
    [
        ([Assignment("ai-llm", 0), Assignment("nobody", 0)], "assignments[1].service"),
        ([Assignment("ai-llm", 0), Assignment("ai-llm", 1)], "assignments[1].service"),
        ([Assignment("ai-llm", 2)], "assignments[0].gpu_index"),
    ],
)
async def test_what_cannot_be_is_refused_by_its_field_and_nothing_is_saved(tmp_path, assignments, field):
    async with setting(tmp_path) as at:
        with pytest.raises(BadAssignment) as refused:
            await at.services.save(Strategy.MANUAL, assignments)
        assert refused.value.field == field
        assert (await at.services.view()).saved is None
        assert at.orchestrator.written == []


async def test_all_that_cannot_be_is_listed_at_once(tmp_path):
    several = Assignment("ai-llm").on([GpuRef(7), GpuRef(8)])
    asked = [replace(several, service="nobody"), Assignment("", 9), Assignment("ai-llm", 0), several]
    async with setting(tmp_path) as at:
        with pytest.raises(BadAssignment) as refused:
            await at.services.save(Strategy.MANUAL, asked)
    assert [(each.field, each.message) for each in refused.value.faults] == [
        ("assignments[0].service", "there is no service 'nobody'"),
        ("assignments[0].gpu_index", "there is no GPU 7"),
        ("assignments[0].more_gpus", "there is no GPU 8"),
        ("assignments[1].gpu_index", "there is no GPU 9"),
        ("assignments[3].service", "ai-llm is listed already"),
        ("assignments[3].gpu_index", "there is no GPU 7"),
        ("assignments[3].more_gpus", "there is no GPU 8"),
    ]
    assert refused.value.message.startswith("assignments[0].service: there is no service 'nobody'; assign")
    assert refused.value.hint.count("GPUs: 0, 1.") == 1


async def test_config_file_write_fails(tmp_path):
    async with setting(tmp_path) as at:
        await at.services.save(Strategy.MANUAL, [Assignment("ai-llm", 0)])
        at.orchestrator.disk_full = True
        with pytest.raises(GeneratedFileFailed):
            await at.services.save(Strategy.MANUAL, [Assignment("ai-llm", 1)])
        saved = (await at.services.view()).saved
        assert saved is not None
        assert saved.assignments[0].gpu_index == 0
        assert len(await at.services.history()) == 1


async def test_an_edited_file_is_shown_and_not_overwritten_without_force(tmp_path):
    async with setting(tmp_path) as at:
        at.orchestrator.by_hand = (Path("config/gpu-assignments.yml"),)
        assert any("changed by hand" in problem for problem in (await at.services.view()).problems)
        with pytest.raises(GeneratedFileEdited):
            await at.services.save(Strategy.BALANCED, [])
        await at.services.save(Strategy.BALANCED, [], force=True)


async def test_gpu_removed_failed(tmp_path):
    async with setting(tmp_path) as at:
        await at.applied()
        at.cards = "RTX A5500:24564:0"
        view = await at.services.view()
        assert [each.text for each in view.warnings if each.kind is WarningKind.GPU_MISSING] == [
            "GPU 1 is missing. ai-enrichment falls back to GPU 0.",
            "GPU 1 is missing. ai-clip falls back to GPU 0.",
        ]
        await at.applied()
        assert (await at.pinned())["ai-enrichment"] == 0
        at.cards = REFERENCE
        await at.applied()
        assert (await at.pinned())["ai-enrichment"] == 1


async def test_no_gpus_detected(tmp_path):
    async with setting(tmp_path) as at:
        at.cards = None
        view = await at.services.view()
        assert view.devices == ()
        assert any("No GPUs detected" in problem for problem in view.problems)
        plan, _ = await at.services.preview(Strategy.VRAM_BASED)
        assert {each.gpu_index for each in plan.assignments} == {None}


async def test_container_restart_fails(tmp_path):
    async with setting(tmp_path) as at:
        await at.applied()
        at.orchestrator.broken = {"ai-clip"}
        saved = (await at.services.view()).saved
        await at.services.save(Strategy.MANUAL, [Assignment("ai-clip", 0)])
        assert (await at.applied()).state is ApplyState.ROLLED_BACK
        view = await at.services.view()
        assert saved is not None
        assert view.applied is not None
        assert view.applied.number == saved.number
        assert at.orchestrator.orders[-1].restore_number == saved.number


async def test_podman_api_unavailable(tmp_path):
    async with setting(tmp_path) as at:
        at.orchestrator.engine = False
        await at.services.save(Strategy.VRAM_BASED, [])
        with pytest.raises(ContainerEngineMissing):
            await at.services.apply()
        assert (await at.services.status()) == (None, ())


async def test_an_order_that_no_engine_can_carry_out_saves_nothing(tmp_path):
    async with setting(tmp_path) as at:
        at.orchestrator.engine = False
        with pytest.raises(ContainerEngineMissing):
            await at.services.apply()
        assert await at.services.history() == []

        at.orchestrator.engine = True
        await at.applied()
        await at.services.save(Strategy.MANUAL, [Assignment("ai-enrichment", 0)])
        before = await at.services.history()
        at.orchestrator.engine = False
        with pytest.raises(ContainerEngineMissing):
            await at.services.rollback()
        assert await at.services.history() == before


async def test_one_apply_at_a_time(tmp_path):
    async with setting(tmp_path) as at:
        at.orchestrator.gate.clear()
        await at.services.apply()
        with pytest.raises(ApplyRunning):
            await at.services.apply()
        with pytest.raises(ApplyRunning):
            await at.services.rollback()
        at.orchestrator.gate.set()
        assert (await at.ended()).state is ApplyState.SUCCEEDED


async def test_rollback_goes_back_to_what_was_applied_before_and_back_again(tmp_path):
    async with setting(tmp_path) as at:
        with pytest.raises(NothingToRollBack):
            await at.services.rollback()
        await at.applied()
        await at.services.save(Strategy.MANUAL, [Assignment("ai-enrichment", 0)])
        await at.applied()
        assert (await at.pinned())["ai-enrichment"] == 0
        await at.services.rollback()
        await at.ended()
        assert (await at.pinned())["ai-enrichment"] == 1
        await at.services.rollback(2)
        await at.ended()
        assert (await at.pinned())["ai-enrichment"] == 0
        with pytest.raises(NothingToRollBack):
            await at.services.rollback(99)


async def test_a_failure_that_is_kept_can_be_rolled_back_by_hand(tmp_path):
    async with setting(tmp_path, OnFailure.KEEP) as at:
        await at.applied()
        at.orchestrator.broken = {"ai-clip"}
        await at.services.save(Strategy.MANUAL, [Assignment("ai-clip", 0), Assignment("ai-llm", 0)])
        assert (await at.applied()).state is ApplyState.FAILED
        at.orchestrator.broken = set()
        await at.services.rollback()
        assert (await at.ended()).state is ApplyState.SUCCEEDED
        assert (await at.pinned())["ai-clip"] == 1


async def test_many_looks_query_the_container_engine_once_until_an_apply_takes_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr("cotenant.services.operator._FRESH_S", 10_000.0)
    async with setting(tmp_path) as at:
        queries, real = [], at.orchestrator.containers

        async def counted():
            queries.append(1)
            return await real()

        monkeypatch.setattr(at.orchestrator, "containers", counted)
        await asyncio.gather(*(at.services.status() for _ in range(5)))
        for _ in range(5):
            await at.services.status()
            await at.services.view()
        assert len(queries) == 1
        await at.services.preview(Strategy.BALANCED)
        assert len(queries) == 2, "what is decided is decided by what is"
        await at.applied()
        states = {each.service: each.running for each in (await at.services.status())[1]}
        assert all(states.values())
        assert (await at.services.view()).changes == ()


async def test_looking_does_not_read_the_whole_history(tmp_path, monkeypatch):
    async with setting(tmp_path) as at:
        await at.applied()

        async def history(limit: int = 20) -> list[SavedConfiguration]:
            raise AssertionError(f"{limit} entries are read")

        monkeypatch.setattr(at.store.services, "history", history)
        again = at.anew()
        view = await again.view()
        assert view.applied is not None
        assert view.applied.assignments == view.saved.assignments
        status, _ = await again.status()
        assert status == view.applied.apply
        await again.preview(Strategy.VRAM_BASED)


async def test_an_apply_that_was_cut_short_is_reported_by_the_next_run(tmp_path):
    async with setting(tmp_path) as at:
        at.orchestrator.gate.clear()
        begun = await at.services.apply()
        await at.services.close()
        at.orchestrator.left = replace(begun, state=ApplyState.INTERRUPTED, message="ai-llm is down")
        again = at.anew()
        await again.start()
        status, _ = await again.status()
        assert status is not None
        assert status.state is ApplyState.INTERRUPTED
        (entry,) = await again.history()
        assert entry.apply == at.orchestrator.left


async def test_changes_are_told_step_by_step(tmp_path):
    async with setting(tmp_path) as at:
        changes = at.services.changes()
        first = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        await at.services.apply()
        assert (await first).state is ApplyState.RUNNING
        async with asyncio.timeout(DEADLINE_S):
            async for status in changes:
                if status.state is ApplyState.SUCCEEDED:
                    break


async def test_models_that_are_loaded_count_as_occupied(tmp_path):
    async with setting(tmp_path) as at:
        at.claims = {"RTX A400": 2 * GIB}
        (_, small) = (await at.services.view()).devices
        assert small.occupied_bytes == 2 * GIB + 329 * MIB


async def test_compose_files_are_read_beside_the_event_loop(tmp_path):
    """They take tens of milliseconds, in which no token of any model would be passed on."""
    async with setting(tmp_path) as at:
        readers: set[int] = set()
        names = at.orchestrator.compose_services()

        def reading() -> Sequence[str]:
            readers.add(threading.get_ident())
            return names

        at.orchestrator.compose_services = reading
        await at.services.view()
        await at.services.preview(Strategy.VRAM_BASED)
        await at.services.save(Strategy.VRAM_BASED, ())
        assert readers
        assert threading.get_ident() not in readers


async def test_a_driver_that_hangs_is_asked_once_however_many_look(tmp_path):
    async with setting(tmp_path) as at:
        goes_on = threading.Event()
        looked: list[int] = []
        look = at.look

        def hang() -> Inventory:
            looked.append(1)
            assert goes_on.wait(30)
            return look()

        services = Services(at.settings, at.store.services, at.orchestrator, hang, dict)
        views = [asyncio.create_task(services.view()) for _ in range(5)]
        async with asyncio.timeout(DEADLINE_S):
            # The database answers in the order of the questions: then all views have asked theirs.
            for _ in range(4):
                await at.store.services.current()
            views.pop().cancel()
            goes_on.set()
            told = await asyncio.gather(*views)
        assert len(looked) == 1
        assert {len(each.devices) for each in told} == {2}


async def test_detecting_again_remembers_cards_that_are_gone(tmp_path):
    async with setting(tmp_path) as at:
        at.cards = "RTX A5500:24564:0"
        assert [each.name for each in await at.services.detect()] == ["RTX A5500", "RTX A400"]


async def test_a_database_that_is_away_keeps_nobody_from_serving_models(tmp_path, caplog):
    store = Store(Writer("postgresql+psycopg://nobody@127.0.0.1:1/none"))
    try:
        at = Setting(store, PlainOrchestrator(*(each.name for each in SERVICES)), OnFailure.ROLLBACK)
        await at.services.start()
        assert "is unavailable for now" in caplog.text
        with pytest.raises(StoreError):
            await at.services.view()
    finally:
        await store.close()


async def test_a_recommendation_scores_what_previews_would_show(tmp_path):
    async with setting(tmp_path) as at:
        await at.services.save(Strategy.MANUAL, [Assignment("ai-llm", 0)])
        await at.applied()
        found = await at.services.recommend()
        for each in found.strategies:
            plan, changes = await at.services.preview(each.strategy)
            assert (each.assignments, each.n_changes) == (plan.assignments, len(changes))
        by_strategy = {each.strategy: each for each in found.strategies}
        assert by_strategy[Strategy.MANUAL].n_changes == 0
        assert found.recommended is Strategy.ISOLATION_FIRST
        assert found.recommended == max(found.strategies, key=lambda each: each.score).strategy


async def test_a_service_that_is_measured_on_a_gpu_is_not_counted_there_twice(tmp_path, monkeypatch):
    async with setting(tmp_path) as at:
        await at.services.save(Strategy.MANUAL, [])
        await at.applied()
        live = replace(at.look(), source=InventorySource.NVML)
        small = live.devices[1]
        readings = {**live.readings, small.id: replace(live.reading(small), used_bytes=3000 * MIB)}
        monkeypatch.setattr(at, "look", lambda: replace(live, readings=readings))
        services = at.anew()
        # None is pinned: unless it is measured, ai-florence is taken to run on GPU 0, and what it uses of
        # GPU 1 for others'.
        isolated = (await services.recommend()).strategies[3]
        assert isolated.worst_over_bytes > 0
        monkeypatch.setattr(
            "cotenant.services.operator.measured_bytes",
            lambda *_: {"ai-florence": {small.id: 2900 * MIB}},
        )
        found = await services.recommend()
        assert found.measured_bytes == {"ai-florence": 2900 * MIB}
        assert found.strategies[3].worst_over_bytes < isolated.worst_over_bytes
        await services.close()
