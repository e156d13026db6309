"""Which cards are shared through MPS, as modes, models and processes change."""

from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.config.configuration import ModelEntry
from cotenant.daemon.core.fleet import wanting
from cotenant.domain.devices import (
    HOST_ID,
    ComputeMode,
    Device,
    DeviceId,
    DeviceKind,
    GpuProcess,
    Inventory,
    MpsGroup,
    MpsMode,
    Reading,
)
from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Share
from cotenant.domain.units import GIB
from cotenant.domain.vendors import InventorySource, Vendor
from cotenant.hardware.mps.control import MpsControl
from cotenant.hardware.mps.directories import MpsDirectories
from cotenant.hardware.mps.discovery import FoundDaemon
from cotenant.sharing.mps import MpsRules, Sharing
from tests.support.models.shapes import dense

EXCLUSIVE, DEFAULT = ComputeMode.EXCLUSIVE_PROCESS, ComputeMode.DEFAULT


def card(index: int, **facts: object) -> Device:
    device = Device(DeviceId(f"GPU-{index}"), DeviceKind.GPU, "card", index=index, total_bytes=24 * GIB)
    return replace(device, **{"vendor": Vendor.NVIDIA, **facts})  # type: ignore[arg-type]


def machine(*cards: tuple[Device, ComputeMode | None], processes: tuple[GpuProcess, ...] = ()) -> Inventory:
    readings = {
        device.id: Reading(device.id, 0.0, free_bytes=GIB, compute_mode=mode, processes=processes)
        for device, mode in cards
    }
    return Inventory(InventorySource.NVML, tuple(device for device, _ in cards), readings)


def entry(name: str, **facts: object) -> ModelEntry:
    plain = ModelEntry(name, Path("m.gguf"), Recipe(), dense(2, 1), (), ())
    return replace(plain, **facts)  # type: ignore[arg-type]


TWO = (entry("a"), entry("b"))


class Bench:
    def __init__(self, models=TWO, **facts: object) -> None:
        rules = MpsRules(MpsMode.AUTO, MpsGroup.ALL, Path("/x/control"), Path("/x"))
        self.changes = 0
        self.sharing = Sharing(
            replace(rules, **facts),  # type: ignore[arg-type]
        )
        self.models = models
        self.sharing.listeners.append(self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def admits(self, *cards: tuple[Device, ComputeMode | None], **facts) -> list[int | None]:
        found = self.sharing.admissions(machine(*cards, **facts), (), wanting(self.models))
        return [found[device.id].max_engines for device, _ in cards]

    def groups(self, *cards: tuple[Device, ComputeMode | None]) -> list[str | None]:
        found = self.sharing.admissions(machine(*cards), (), wanting(self.models))
        return [found[device.id].group for device, _ in cards]


def test_only_exclusive_cards_need_mps() -> None:
    assert Bench().admits((card(0), EXCLUSIVE), (card(1), DEFAULT), (card(2), None)) == [48, None, None]


def test_as_long_as_one_model_alone_may_use_a_card_it_is_not_shared() -> None:
    models = (entry("a", gpus=("0",)), entry("b"), entry("c", recipe=Recipe(n_gpu_layers=0)))
    assert Bench(models).admits((card(0), EXCLUSIVE), (card(1), EXCLUSIVE)) == [48, 1]


def test_with_one_model_loaded_at_a_time_nothing_is_shared() -> None:
    assert Bench(max_loaded=1).admits((card(0), EXCLUSIVE)) == [1]


def test_where_another_s_mps_server_holds_a_card_even_one_model_goes_through_mps() -> None:
    server = (GpuProcess(9, "nvidia-cuda-mps-server", None),)
    assert Bench((entry("a"),)).admits((card(0), EXCLUSIVE), processes=server) == [48]


def test_a_card_that_a_stranger_holds_is_kept_out_of_the_others_daemon() -> None:
    bench = Bench()
    stranger = machine((card(1), EXCLUSIVE), processes=(GpuProcess(9, "python3", GIB),))
    free = machine((card(0), EXCLUSIVE))
    both = Inventory(
        InventorySource.NVML,
        (*free.devices, *stranger.devices),
        {**free.readings, **stranger.readings},
    )
    assert [each.group for each in bench.sharing.admissions(both, (), wanting(TWO)).values()] == ["mps", None]
    assert [each.group for each in bench.sharing.admissions(both, [9], wanting(TWO)).values()] == [
        "mps",
        "mps",
    ]


def test_required_shares_every_card_but_amd_s_and_host_ram() -> None:
    amd, host = card(1, vendor=Vendor.AMD), Device(HOST_ID, DeviceKind.HOST, "host RAM")
    admitted = Bench((entry("a"),), mode=MpsMode.REQUIRED).admits(
        (card(0), DEFAULT), (amd, None), (host, None)
    )
    assert admitted == [48, None, None]


def test_off_and_a_missing_program_leave_one_engine_a_card() -> None:
    assert Bench(mode=MpsMode.OFF).admits((card(0), EXCLUSIVE)) == [1]
    assert Bench(program=None).admits((card(0), EXCLUSIVE)) == [1]


def test_cards_are_of_one_group_or_each_of_its_own_and_a_slice_always() -> None:
    mig = card(2, id=DeviceId("MIG-2"), kind=DeviceKind.MIG)
    cards = [(card(0), EXCLUSIVE), (card(1), EXCLUSIVE), (mig, EXCLUSIVE)]
    assert Bench().groups(*cards) == ["mps", "mps", "MIG-2"]
    assert Bench(group=MpsGroup.CARD).groups(*cards) == ["GPU-0", "GPU-1", "MIG-2"]


def found(*cards: str, problem: str | None = None) -> FoundDaemon:
    directories = MpsDirectories(Path("/p"), Path("/l"), ours=False)
    return FoundDaemon(MpsControl(Path("/x/control"), directories), None, cards or None, problem)


def test_cards_of_a_daemon_that_runs_already_are_a_group_of_their_own() -> None:
    bench = Bench(found=(found("GPU-1"),))
    groups = bench.groups((card(0), EXCLUSIVE), (card(1), EXCLUSIVE))
    assert groups == ["mps", "found-0"]


def placement(*devices: Device) -> Placement:
    shares = tuple(
        Share(Budget(device, GIB, GIB), 0, 0, 1, has_output=True, parts=Parts(weights=GIB))
        for device in devices
    )
    return Placement("m", Recipe(), 1, 1, shares, host=Parts())


async def test_an_engine_is_kept_away_from_a_daemon_that_numbers_cards_anew() -> None:
    bench = Bench(found=(found("2", problem="it numbers anew"),), program=None)
    bench.admits((card(0), EXCLUSIVE))
    told = await bench.sharing.environment(1, "a", entry("a").mps_terms, placement(card(0)), print)
    assert told == {"CUDA_MPS_PIPE_DIRECTORY": "/x/mps/none"}


async def test_a_card_with_an_engine_started_alone_is_shared_once_that_has_gone() -> None:
    models = [entry("a")]
    bench = Bench(models)
    assert bench.admits((card(0), EXCLUSIVE)) == [1]
    assert await bench.sharing.environment(1, "a", models[0].mps_terms, placement(card(0)), print) == {}
    models.append(entry("b"))
    admission = bench.sharing.admissions(machine((card(0), EXCLUSIVE)), (), wanting(models))[card(0).id]
    assert "was started without MPS: unload that engine" in admission.why
    bench.sharing.ended(1)
    assert bench.changes == 1
    assert bench.admits((card(0), EXCLUSIVE)) == [48]


async def test_a_daemon_is_never_started_for_a_card_with_an_engine_without_it() -> None:
    models = [entry("a")]
    bench = Bench(models)
    cards = [(card(0), EXCLUSIVE), (card(1), EXCLUSIVE)]
    bench.groups(*cards)
    await bench.sharing.environment(1, "a", models[0].mps_terms, placement(card(0)), print)
    models.append(entry("b"))
    assert bench.groups(*cards) == [None, "mps"]
    bench.sharing._groups["mps"].users[2] = print
    bench.sharing.ended(1)
    assert bench.groups(*cards) == ["mps-2", "mps"]


@pytest.mark.parametrize("mode", [MpsMode.AUTO, MpsMode.OFF])
async def test_a_model_in_host_ram_is_told_nothing(mode: MpsMode) -> None:
    bench = Bench(mode=mode)
    host = placement(Device(HOST_ID, DeviceKind.HOST, "host RAM"))
    assert await bench.sharing.environment(1, "a", entry("a").mps_terms, host, print) == {}


def test_a_card_for_one_engine_that_several_models_may_use_is_warned_of() -> None:
    def warned(models: tuple[ModelEntry, ...] = TWO, **facts: object) -> list[str]:
        bench, found = Bench(models, **facts), machine((card(0), EXCLUSIVE), (card(1), DEFAULT))
        bench.sharing.admissions(found, (), wanting(models))
        return [text.partition(" is for")[0] for text in bench.sharing.warnings(found, (), wanting(models))]

    assert warned() == []
    assert warned(mode=MpsMode.OFF) == ["GPU 0 card"] == warned(program=None)
    assert warned((entry("a", gpus=("1",)), entry("b")), mode=MpsMode.OFF) == []
    assert warned(mode=MpsMode.OFF, max_loaded=1) == []
