"""GPUs that share host RAM: one pool, counted once, with a part for the operating system."""

from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from cotenant.cli.gpus import as_json, as_text
from cotenant.cli.render import device_lines
from cotenant.clock import ManualClock
from cotenant.daemon.monitors.readings import device_readings
from cotenant.domain.devices import HOST_ID, Device, DeviceId, DeviceKind, DeviceOrder, Inventory
from cotenant.domain.models import MOST_LAYERS, Recipe
from cotenant.domain.placements import Placement, Refusal
from cotenant.domain.residencies import ResidencyId
from cotenant.domain.units import GIB
from cotenant.hardware.gpus.amd import AmdProbe
from cotenant.hardware.gpus.host import HostProbe
from cotenant.hardware.gpus.inventory import WithHostMemory
from cotenant.hardware.gpus.nvml import NvmlProbe
from cotenant.planning.advice import plan
from cotenant.planning.budgets import BudgetRules, budgets, host_budget
from cotenant.planning.device_needs import Fit
from cotenant.planning.host_memory import held_bytes, placement_bytes
from cotenant.planning.ledger import Ledger
from cotenant.planning.planner import PlanRequest, place
from cotenant.scheduling.model_spec import ModelSpec
from tests.scheduling.harness import Bench
from tests.support.gpus.fake_amdsmi import AmdCard, AmdSmiVramType, StandInAmdsmi
from tests.support.gpus.fake_nvml import PaperCard, Process, StandInNvml
from tests.support.models.shapes import dense

RULES = BudgetRules()
REFUSED = pynvml.NVMLError_NotSupported()
SILENT = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetMemoryBusWidth")
SPARK = PaperCard(
    "GPU-spark",
    "NVIDIA GB10",
    capability=(12, 1),
    compute=(Process(100, 40 * GIB), Process(200, 2 * GIB)),
    refuses=dict.fromkeys(SILENT, REFUSED),
)
LISTS = tuple(f"nvmlDeviceGet{kind}RunningProcesses" for kind in ("Compute", "Graphics", "MPSCompute"))
JETSON = PaperCard(
    "GPU-orin",
    "Orin (nvgpu)",
    capability=(8, 7),
    refuses=dict.fromkeys(
        (*SILENT, *LISTS, "nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPciInfo"),
        REFUSED,
    ),
)


@pytest.fixture
def host(tmp_path: Path) -> HostProbe:
    """A machine of 128 GiB, of which 96 are available."""
    (tmp_path / "self").mkdir()
    kib = GIB // 1024
    (tmp_path / "meminfo").write_text(f"MemTotal: {128 * kib} kB\nMemAvailable: {96 * kib} kB\n")
    return HostProbe(ManualClock(), proc=tmp_path, cgroup=tmp_path / "cgroup")


def nvidia(host: HostProbe, *cards: PaperCard) -> Inventory:
    probe = NvmlProbe(ManualClock(), StandInNvml(*cards), devices=Path("/nowhere"), host=host)
    return WithHostMemory(probe, host).inventory()


def amd(host: HostProbe, *cards: AmdCard) -> Inventory:
    probe = AmdProbe(ManualClock(), StandInAmdsmi(*cards), devices=Path("/nowhere"), host=host)
    return WithHostMemory(probe, host).inventory()


@pytest.mark.parametrize("card", [SPARK, JETSON], ids=lambda card: card.name)
def test_a_board_whose_driver_tells_no_memory_is_one_pool_with_host_ram(
    host: HostProbe, card: PaperCard
) -> None:
    found = nvidia(host, card)
    (device,) = found.devices
    reading = found.reading(device)
    assert (device.unified, device.total_bytes, found.host) == (True, 128 * GIB, None)
    assert (reading.free_bytes, reading.used_bytes, reading.problem) == (96 * GIB, 32 * GIB, None)
    (budget,) = budgets(found, RULES)
    # 1/16 of it all stays with the system.
    assert budget.budget_bytes == 88 * GIB
    assert host_budget(found, RULES) == budget
    (more,) = budgets(found, replace(RULES, reserve_bytes=16 * GIB))
    assert more.budget_bytes == 80 * GIB


def test_the_limit_of_a_control_group_bounds_the_pool(host: HostProbe, tmp_path: Path) -> None:
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    (tmp_path / "cgroup").mkdir()
    for name, count in (("memory.max", 32 * GIB), ("memory.current", 12 * GIB)):
        (tmp_path / "cgroup" / name).write_text(str(count))
    found = nvidia(host, SPARK)
    assert found.devices[0].total_bytes == 32 * GIB
    assert budgets(found, RULES)[0].budget_bytes == 18 * GIB


def test_without_the_kernels_numbers_nothing_is_planned_there(tmp_path: Path) -> None:
    nothing = HostProbe(ManualClock(), proc=tmp_path, cgroup=tmp_path)
    found = nvidia(nothing, SPARK)
    assert "shares the host's RAM" in (found.reading(found.devices[0]).problem or "")
    assert budgets(found, RULES)[0].left_out


def test_it_is_left_out_next_to_cards_with_memory_of_their_own(host: HostProbe) -> None:
    found = nvidia(host, JETSON, PaperCard("GPU-b"))
    assert [device.id for device in found.devices] == ["GPU-b"]
    assert found.host is not None
    assert any("Orin (nvgpu) shares host RAM and is left out" in problem for problem in found.problems)


APU = {"name": "AMD Radeon 8060S Graphics", "total": GIB // 2, "vram_type": AmdSmiVramType.LPDDR5}


def test_an_apu_has_what_of_host_ram_it_may_map(host: HostProbe) -> None:
    found = amd(host, AmdCard(**APU, gtt=64 * GIB, gtt_used=4 * GIB))
    (device,) = found.devices
    assert (device.unified, device.total_bytes, found.host) == (True, 64 * GIB, None)
    assert found.reading(device).free_bytes == 60 * GIB
    larger = amd(host, AmdCard(**APU, gtt=120 * GIB, gtt_used=4 * GIB))
    assert larger.reading(larger.devices[0]).free_bytes == 96 * GIB


@pytest.mark.parametrize(
    "card",
    [
        AmdCard(total=96 * GIB, vram_type=AmdSmiVramType.LPDDR5, gtt=16 * GIB),
        AmdCard(total=8 * GIB, vram_type=AmdSmiVramType.GDDR6, gtt=64 * GIB),
        AmdCard(total=GIB, vram_type=AmdSmiVramType.DDR5),
    ],
    ids=["carved out", "a card", "no GTT"],
)
def test_memory_that_is_not_the_hosts_stays_a_pool_of_its_own(host: HostProbe, card: AmdCard) -> None:
    found = amd(host, card)
    assert (found.devices[0].unified, found.devices[0].total_bytes) == (False, card.total)
    assert found.host is not None


def planned(found: Inventory, n_layers: int = 40, **recipe: object) -> Placement | Refusal:
    request = PlanRequest("m", dense(n_layers, GIB), Recipe(**recipe))  # type: ignore[arg-type]
    return plan(request, budgets(found, RULES), RULES, host_budget(found, RULES))


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("layers", [-1, MOST_LAYERS, 30, 0])
@pytest.mark.parametrize("n_layers", [20, 80, 87, 100])
def test_all_of_a_model_is_claimed_on_the_one_pool_and_fits_there(
    host: HostProbe, n_layers: int, layers: int | str, mapped: bool
) -> None:
    found = nvidia(host, SPARK)
    (budget,) = budgets(found, RULES)
    layers = "all" if layers == -1 else layers
    placed = planned(found, n_layers, n_gpu_layers=layers, mmap=mapped)
    if isinstance(placed, Refusal):
        assert n_layers >= 87
        assert all(shortfall.device.id == "GPU-spark" for shortfall in placed.shortfalls)
        return
    claimed = placement_bytes(placed)
    assert claimed.keys() == {"GPU-spark"}
    assert claimed["GPU-spark"] <= budget.budget_bytes
    in_all = sum(share.parts.total for share in placed.used_shares) + held_bytes(placed)
    assert claimed["GPU-spark"] == in_all
    on_cards = sum(share.parts.weights for share in placed.used_shares)
    if not mapped:
        assert in_all >= n_layers * GIB
    else:
        assert in_all >= on_cards


def test_what_is_mapped_and_does_not_fit_next_to_the_layers_is_warned_of(host: HostProbe) -> None:
    placed = planned(nvidia(host, SPARK), 100, n_gpu_layers=70)
    assert isinstance(placed, Placement)
    assert "are read from the disk again for every token" in placed.warnings[-1]


def test_the_ledger_counts_each_byte_once_and_what_the_system_uses_as_others(host: HostProbe) -> None:
    found = nvidia(host, SPARK)
    ledger = Ledger(RULES.reserve_bytes)
    (reading,) = device_readings(found, RULES, {100: ResidencyId(1)}, at=1.0)
    assert (reading.foreign_bytes, reading.engine_bytes, reading.left_out) == (None, None, None)
    ledger.read([reading])
    assert ledger.available_bytes(reading.device.id) == 88 * GIB
    ledger.claim(ResidencyId(1), {reading.device.id: 40 * GIB})
    assert ledger.available_bytes(reading.device.id) == 48 * GIB
    host_room = ledger.host_budget({}, None)
    assert host_room is not None
    assert (host_room.device.id, host_room.budget_bytes) == ("GPU-spark", 48 * GIB)
    freed = ledger.host_budget({reading.device.id: 10 * GIB}, None)
    assert freed is not None
    assert freed.budget_bytes == 58 * GIB
    # The engine has taken its bytes: a Reading shows them, and they are no other's.
    ledger.show(ResidencyId(1), 2.0)
    ledger.read([replace(reading, at=3.0, free_bytes=56 * GIB)])
    assert ledger.foreign_bytes(reading.device.id) == 32 * GIB
    assert ledger.available_bytes(reading.device.id) == 48 * GIB
    assert not [*ledger.overcommitted()]
    held_in_ram = planned(found, 20, n_gpu_layers=0, mlock=True)
    assert isinstance(held_in_ram, Placement)
    assert isinstance(ledger.on_host(held_in_ram), Placement)
    assert isinstance(ledger.on_host(planned(found, 60, n_gpu_layers=0, mlock=True)), Refusal)
    assert HOST_ID not in ledger.readings


def test_gpus_and_plans_say_that_it_is_one_pool(host: HostProbe) -> None:
    found = nvidia(host, SPARK)
    line = "GPU 0 NVIDIA GB10 shares host RAM: one pool; at least 8,192 MiB stay with the system"
    assert line in [*as_text(found, DeviceOrder.INDEX)]
    assert as_json(found, DeviceOrder.INDEX)["devices"][0]["unified"] is True
    assert f"  {line}" in [*device_lines(found, budgets(found, RULES), DeviceOrder.INDEX)]


def test_models_of_one_pool_take_turns_on_gpu_and_cpu_alike() -> None:
    """Every step checks the laws: 100 GiB hold one of 60 GiB on the GPU, or one of 60 held in host RAM."""
    board = Device(DeviceId("GPU-0"), DeviceKind.GPU, "board", 0, 100 * GIB, unified=True)

    def fit(layers: int | str) -> Fit:
        request = PlanRequest("m", dense(60, GIB), Recipe(n_gpu_layers=layers, mlock=True))
        return lambda given: place(request, given, RULES)

    names = {"gpu": fit("all"), "cpu": fit(0), "part": fit(30)}
    bench = Bench.of([ModelSpec(name, each, load_s=2.0) for name, each in names.items()], [board])
    for name in (*names, *names):
        ticket = bench.ask(name)
        if bench.stopping:
            bench.gone(next(iter(bench.stopping)))
            bench.read(board)
        bench.ready(name)
        (claim,) = bench.state.ledger.claims.values()
        assert claim.bytes_by_device.keys() == {board.id}
        assert 60 * GIB < claim.bytes_by_device[board.id] < 66 * GIB
        bench.done(ticket)
