"""What containers do decides what an apply recreates, what a preview lists, and whose memory is whose."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.errors import ApplyRunning, GeneratedFileFailed
from cotenant.domain.units import MIB
from cotenant.services.compose.container_engine import _container, states
from cotenant.services.model import (
    ApplyState,
    ApplyStatus,
    Assignment,
    ContainerState,
    OnFailure,
    ProgressState,
    ServiceProgress,
    Strategy,
    WarningKind,
)
from cotenant.store.store import Store
from cotenant.store.writer import Writer
from tests.services.test_operator import Setting, setting


async def recreated(at: Setting) -> list[str]:
    """What an apply recreates; the preview before it must list the same."""
    listed = [change.service for change in (await at.services.view()).changes]
    await at.applied()
    names = [service.name for service in at.orchestrator.orders[-1].changed]
    assert listed == names
    return names


@pytest.mark.parametrize("state", [{"running": False}, {"healthy": False}])
async def test_a_container_that_does_not_run_well_is_recreated(tmp_path: Path, state: dict[str, bool]):
    async with setting(tmp_path) as at:
        await at.applied()
        assert await recreated(at) == []
        at.orchestrator.states["ai-clip"] = replace(at.orchestrator.states["ai-clip"], **state)
        assert await recreated(at) == ["ai-clip"]


async def test_a_failed_apply_that_was_kept_is_tried_again(tmp_path: Path):
    """Its container has the new label and runs, but it never answered at its address."""
    async with setting(tmp_path, OnFailure.KEEP) as at:
        await at.applied()
        saved = (await at.services.view()).saved
        assert saved is not None
        failed = ApplyStatus(
            saved.number,
            ApplyState.FAILED,
            0.0,
            1.0,
            (
                ServiceProgress("ai-clip", ProgressState.FAILED),
                ServiceProgress("ai-llm", ProgressState.HEALTHY),
            ),
        )
        await at.store.services.record_apply(saved.number, failed)
        at.services = at.anew()
        (change,) = (await at.services.view()).changes
        assert (change.service, change.reason) == ("ai-clip", "it did not come up in the last apply")
        assert await recreated(at) == ["ai-clip"]
        assert await recreated(at) == []


async def test_a_fresh_database_lists_what_apply_does(tmp_path: Path):
    async with setting(tmp_path) as at:
        await at.applied()
        at.store = Store(Writer(tmp_path / "fresh.db"))
        try:
            at.services = at.anew()
            assert (await at.services.preview(Strategy.VRAM_BASED))[1] == ()
            await at.services.save(Strategy.VRAM_BASED, [Assignment("ai-florence", 1)])
            assert await recreated(at) != []
        finally:
            await at.store.close()


async def test_an_interrupted_apply_lists_what_is_left_to_do(tmp_path: Path):
    async with setting(tmp_path) as at:
        await at.applied()
        await at.services.save(Strategy.MANUAL, [Assignment(name, 1) for name in ("ai-clip", "ai-yolo26")])
        saved = (await at.services.view()).saved
        assert saved is not None
        done = next(each for each in saved.assignments if each.service == "ai-clip")
        at.orchestrator.states["ai-clip"] = replace(at.orchestrator.states["ai-clip"], assignment=done)
        assert "ai-clip" not in await recreated(at)


async def test_without_an_engine_the_last_apply_is_compared(tmp_path: Path):
    async with setting(tmp_path) as at:
        await at.applied()
        at.orchestrator.engine = False
        assert (await at.services.view()).changes == ()


def test_a_container_on_another_gpu_than_its_label_says_is_seen_there():
    label = json.dumps({"gpu": 0, "device_id": "GPU-a", "vram_budget": 2.0})
    labels = {"cotenant.assignment": label, "com.docker.compose.service": "clip"}
    for name, expected in (
        ("0", Assignment("clip", 0, "GPU-a", 2.0)),
        ("GPU-a", Assignment("clip", 0, "GPU-a", 2.0)),
        ("1", Assignment("clip", 1, None, 2.0)),
        ("GPU-b", Assignment("clip", None, "GPU-b", 2.0)),
    ):
        inspected = {
            "Id": "c1",
            "State": {"Running": True},
            "Config": {"Labels": labels},
            "HostConfig": {"DeviceRequests": [{"DeviceIDs": [name]}]},
        }
        (state,) = states([_container(inspected)], ["clip"])
        assert state.assignment == expected


MEASURED = '{"live": true, "gpus": [{"name": "RTX A5500", "total_mib": 24564, "used_mib": %d}]}'


async def test_memory_in_use_is_others_while_no_service_runs(tmp_path: Path):
    machine = tmp_path / "machine.yaml"
    machine.write_text(MEASURED % 21_300)
    async with setting(tmp_path) as at:
        at.cards = str(machine)
        plan, _ = await at.services.preview(Strategy.VRAM_BASED)
        (card,) = (await at.services.view()).devices
        assert (card.occupied_bytes, card.assumed_bytes) == (21_300 * MIB, 0)
        assert any("requires ~21.7 GB, GPU 0 only has 3.2 GB free" in each.text for each in plan.warnings)

        await at.applied()
        (card,) = (await at.services.view()).devices
        assert card.occupied_bytes == 0
        stopped = at.orchestrator.states["ai-llm"]
        at.orchestrator.states["ai-llm"] = replace(stopped, running=False)
        (card,) = (await at.services.view()).devices
        assert card.occupied_bytes > 10_000 * MIB


async def test_memory_that_is_only_assumed_to_be_the_services_is_warned_of(tmp_path: Path):
    """A description does not say whose the memory is, and without an engine nothing shows what runs."""
    async with setting(tmp_path) as at:
        at.orchestrator.engine = False
        plan, _ = await at.services.preview(Strategy.VRAM_BASED)
        (warning,) = [each for each in plan.warnings if each.kind is WarningKind.MEMORY_ASSUMED]
        assert warning.text == (
            "18.9 GB in use on GPU 0 are taken for services' own, though none is seen to run. "
            "If others hold them, only 5.1 GB are free."
        )
        at.orchestrator.engine = True
        await at.applied()
        plan, _ = await at.services.preview(Strategy.VRAM_BASED)
        assert WarningKind.MEMORY_ASSUMED not in {each.kind for each in plan.warnings}


async def test_a_save_during_an_apply_is_refused(tmp_path: Path):
    async with setting(tmp_path) as at:
        at.orchestrator.gate.clear()
        await at.services.apply()
        with pytest.raises(ApplyRunning):
            await at.services.save(Strategy.BALANCED, ())
        at.orchestrator.gate.set()
        await at.ended()
        assert len(await at.services.history()) == 1
        await at.services.save(Strategy.BALANCED, ())


async def test_a_rollback_whose_files_cannot_be_written_saves_nothing(tmp_path: Path):
    async with setting(tmp_path) as at:
        await at.applied()
        await at.services.save(Strategy.MANUAL, [Assignment("ai-clip", 1)])
        await at.applied()
        at.orchestrator.disk_full = True
        with pytest.raises(GeneratedFileFailed):
            await at.services.rollback()
        assert [each.number for each in await at.services.history()] == [2, 1]


async def test_an_engine_that_hangs_keeps_nobody_from_the_page(tmp_path: Path, monkeypatch):
    wait = asyncio.timeout
    monkeypatch.setattr(asyncio, "timeout", lambda delay: wait(0.0 if delay == 10.0 else delay))
    async with setting(tmp_path) as at:
        goes_on = asyncio.Event()
        containers = at.orchestrator.containers

        async def hang() -> Sequence[ContainerState]:
            await goes_on.wait()
            return await containers()

        at.orchestrator.containers = hang  # type: ignore[method-assign]
        assert len((await at.services.view()).devices) == 2
        goes_on.set()
        assert len((await at.services.status())[1]) == 5
