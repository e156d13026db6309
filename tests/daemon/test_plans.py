"""Plans of the daemon: what its own models hold counts only where that is asked for."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.config.configuration import Configuration
from cotenant.daemon import plans
from cotenant.daemon.capacity import peak
from cotenant.daemon.plans import Plans
from cotenant.domain.decisions import DeviceStatus
from cotenant.domain.devices import (
    ComputeMode,
    Device,
    DeviceId,
    DeviceKind,
    GpuProcess,
    Inventory,
    Reading,
)
from cotenant.domain.errors import BadRecipe, QueueFull, UnsupportedModelFile
from cotenant.domain.models import ModelKind
from cotenant.domain.placements import Placement, PlanQuery
from cotenant.domain.units import GIB
from cotenant.domain.vendors import InventorySource
from cotenant.gateway.plans.command import plan_command, serve_command
from cotenant.model_files import load_model
from tests.support.daemon.planner import entry, inventory, planner
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.models.real_shapes import real_shape
from tests.support.models.vision import build_tiny_projector
from tests.support.waiting import DEADLINE_S, until

CARD = Device(DeviceId("GPU-a"), DeviceKind.GPU, "RTX 3090", 0, 24 * GIB)
OURS, THEIRS = 4711, 815
STATUS = DeviceStatus(
    "GPU-a",
    0,
    "RTX 3090",
    24 * GIB,
    8 * GIB,
    claimed_bytes=10 * GIB,
    foreign_bytes=6 * GIB,
    plannable_bytes=7 * GIB,
)


def measured(mode: ComputeMode = ComputeMode.DEFAULT, *pids: int) -> Inventory:
    """A card of which we hold 10 GiB and others 6."""
    processes = tuple(GpuProcess(pid, "engine", GIB) for pid in pids)
    reading = Reading(CARD.id, 0.0, 16 * GIB, 8 * GIB, mode, processes)
    return Inventory(InventorySource.NVML, (CARD,), {CARD.id: reading})


def desk(cards: Inventory) -> Plans:
    return planner(cards=cards, statuses=(STATUS,), pids=(OURS,))


async def test_what_our_models_hold_may_go():
    found = await desk(measured()).plan(PlanQuery(model="llama-70b"))
    assert [budget.free_bytes for budget in found.budgets] == [18 * GIB]


async def test_beside_what_is_loaded_only_the_rest_is_there():
    found = await desk(measured()).plan(PlanQuery(model="llama-70b", beside_loaded=True))
    assert [(b.free_bytes, b.budget_bytes) for b in found.budgets] == [(8 * GIB, 7 * GIB)]


@pytest.mark.parametrize(("pid", "left_out"), [(OURS, False), (THEIRS, True)])
async def test_an_exclusive_card_is_taken_by_others_and_not_by_us(pid: int, left_out: bool):
    found = await desk(measured(ComputeMode.EXCLUSIVE_PROCESS, pid)).plan(PlanQuery(model="llama-70b"))
    assert (found.budgets[0].left_out is not None) is left_out


async def test_a_model_is_planned_on_the_cards_that_its_configuration_names():
    pinned = planner(entry(gpus=("1",)), cards=inventory())
    here = await pinned.plan(PlanQuery(model="llama-70b"))
    elsewhere = await pinned.plan(PlanQuery(model="llama-70b", gpus="2xRTX 3090"))
    assert [budget.left_out is None for budget in here.budgets] == [False, True]
    assert [budget.left_out is None for budget in elsewhere.budgets] == [True, True]


async def test_a_driver_that_is_gone_leaves_no_device_and_says_so():
    lost = planner(cards=Inventory(InventorySource.NVML, (), {}))
    found = await lost.plan(PlanQuery(model="llama-70b"))
    assert "there is no device" in found.result.reason


async def test_a_projector_is_no_model():
    shape = replace(real_shape("llama-70b"), kind=ModelKind.PROJECTOR)
    with pytest.raises(UnsupportedModelFile, match="vision projector"):
        await planner().plan(PlanQuery(shape=shape, name="mmproj"))


async def test_the_projector_beside_a_file_is_planned_with_it(tmp_path: Path):
    path = build_tiny_llama(tmp_path / "m.gguf")
    projector = build_tiny_projector(tmp_path / "mmproj-F16.gguf")
    anyone = planner(models_dir=tmp_path)
    found = await anyone.plan(PlanQuery(path=str(path)))
    assert found.projector_path == str(projector)
    assert "--mmproj" in serve_command(found)
    without = planner(entry("m", path), models_dir=tmp_path)
    assert "--mmproj none" in serve_command(await without.plan(PlanQuery(model="m")))
    assert "--mmproj" not in serve_command(await planner().plan(PlanQuery(model="llama-70b")))
    alone = await anyone.plan(PlanQuery(shape=found.shape, name="m"))
    needs = load_model(projector).projector
    assert needs is not None
    assert needs.compute > 0
    seeing, blind = (answer.result.used_shares[0].parts for answer in (found, alone))
    assert (seeing.weights, seeing.compute) == (blind.weights + needs.weights, blind.compute + needs.compute)
    assert "compute" in found.result.estimated


async def test_a_plan_leaves_to_the_engine_what_serve_does(tmp_path: Path):
    desk = planner(cards=measured(), by_engine=True)
    found = await desk.plan(PlanQuery(model="llama-70b"))
    assert found.by_engine
    assert "--use-fit-params" in serve_command(found)
    assert "--use-fit-params" in plan_command(found)
    path = build_tiny_llama(tmp_path / "tiny.gguf")
    tiny = planner(entry("tiny", path, shape=load_model(path)), cards=measured(), by_engine=True)
    placed = (await tiny.plan(PlanQuery(model="tiny"))).result
    assert isinstance(placed, Placement)
    assert placed.by_engine
    configuration = Configuration(models=(entry("tiny", path, shape=load_model(path)),))
    (outlook,) = peak(configuration, measured(), use_fit_params=True).alone
    assert isinstance(outlook.result, Placement)
    assert outlook.result.by_engine
    with pytest.raises(BadRecipe, match="--use-fit-params leaves the layout"):
        await desk.plan(PlanQuery(model="llama-70b", recipe={"n_gpu_layers": 5}))


@pytest.mark.parametrize("kind", [ModelKind.EMBEDDING, ModelKind.RERANK])
async def test_what_pools_is_planned_as_it_is_served(kind: ModelKind):
    shape = replace(real_shape("llama-70b"), kind=kind)
    found = await planner().plan(PlanQuery(shape=shape, name="bert", recipe={"n_batch": 1024}))
    assert (found.recipe.n_batch, found.recipe.n_ubatch) == (1024, 1024)


async def test_plans_that_take_long_delay_no_load_and_do_not_pile_up(monkeypatch: pytest.MonkeyPatch):
    let_go, computing = threading.Event(), []

    def slow(*_: object, **__: object) -> None:
        computing.append(threading.current_thread())
        assert let_go.wait(DEADLINE_S)
        raise UnsupportedModelFile("slow")

    monkeypatch.setattr(plans, "plan", slow)
    desk = planner()
    asked = [asyncio.ensure_future(desk.plan(PlanQuery(model="llama-70b"))) for _ in range(40)]
    await until(lambda: computing)
    # What a load does, in the threads that loads use.
    assert await asyncio.to_thread(lambda: "loaded") == "loaded"
    refused = [each for each in asked if each.done() and isinstance(each.exception(), QueueFull)]
    assert (len(refused), len(computing)) == (40 - 1 - plans._MAX_WAITING, 1)
    let_go.set()
    await asyncio.gather(*asked, return_exceptions=True)
    assert len(computing) == 40 - len(refused)
