"""Devices of several machines: a model is placed on those of one, and their names do not collide."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.domain.devices import Device, DeviceId, DeviceKind, Inventory, Reading, host_id, unclear_index
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.errors import UnknownDevice
from cotenant.domain.models import MOST_LAYERS, ModelShape, Recipe, SplitPolicy
from cotenant.domain.placements import MAX_DEVICES, Budget, Placement, Refusal
from cotenant.domain.units import GIB, MIB
from cotenant.domain.vendors import InventorySource
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.device_choice import choose_devices
from cotenant.planning.host_memory import placement_bytes
from cotenant.planning.planner import PlanRequest, leave_to_engine, place
from tests.support.models.shapes import dense, gpu, recipes, shapes

RULES = BudgetRules(overhead_bytes=20 * MIB)
BIG = dense(32, 400 * MIB, n_embd=4096, n_ff=14336, kv=1024)


def on(node: str, index: int, budget_bytes: int) -> Budget:
    budget = gpu(index, budget_bytes)
    return replace(budget, device=replace(budget.device, id=DeviceId(f"GPU-{node}{index}"), node=node))


def ram(node: str, room: int) -> Budget:
    return Budget(Device(host_id(node), DeviceKind.HOST, "host RAM", total_bytes=room, node=node), room, room)


def nodes_of(placement: Placement) -> set[str | None]:
    return {share.device.node for share in placement.used_shares}


def test_two_cards_of_two_machines_do_not_bear_one_model() -> None:
    apart = [on("a", 0, 8 * GIB), on("b", 0, 8 * GIB)]
    refusal = place(PlanRequest("m", BIG, Recipe()), apart, RULES)
    assert isinstance(refusal, Refusal)
    assert refusal.reason.startswith("of 2 machines a is nearest: it needs")
    together = [on("a", 0, 8 * GIB), on("b", 0, 8 * GIB), on("b", 1, 8 * GIB)]
    placed = place(PlanRequest("m", BIG, Recipe()), together, RULES)
    assert isinstance(placed, Placement)
    assert nodes_of(placed) == {"b"}
    assert placed.node == "b"
    assert len(placed.tensor_split) == 2, "the engine there knows only the cards of its machine"


@settings(max_examples=100, deadline=None)
@given(
    shapes(),
    recipes(),
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 300)), min_size=1, max_size=7),
    st.sampled_from([*SplitPolicy]),
    st.sampled_from(["all", MOST_LAYERS, 0, 1, 3]),
    st.sampled_from([EngineKind.LLAMA_CPP, EngineKind.VLLM, EngineKind.COMMAND]),
    st.booleans(),
)
def test_no_planner_spreads_a_model_over_machines(
    shape: ModelShape,
    recipe: Recipe,
    cards: list[tuple[str, int]],
    policy: SplitPolicy,
    layers: str | int,
    engine: EngineKind,
    together: bool,
) -> None:
    recipe = replace(recipe, split_policy=policy, n_gpu_layers=layers, engine=engine)
    request = PlanRequest("m", shape, recipe, stated_bytes=100 * MIB)
    budgets = [on(node, index, mib * MIB) for index, (node, mib) in enumerate(cards)]
    for result in (
        place(request, budgets, RULES),
        choose_devices(lambda those: place(request, those, RULES), budgets, (), together=together),
    ):
        if isinstance(result, Placement):
            assert len(nodes_of(result)) <= 1
            bearing = [budget for budget in budgets if budget.device.node == result.node]
            assert isinstance(place(request, bearing, RULES), Placement)


def test_what_the_engine_lays_out_itself_is_of_one_machine_too() -> None:
    apart = [on("a", 0, 8 * GIB), on("b", 0, 20 * GIB)]
    placed = leave_to_engine(PlanRequest("m", BIG, Recipe()), apart, RULES)
    assert isinstance(placed, Placement)
    assert nodes_of(placed) == {"b"}


def test_the_most_cards_of_an_engine_are_counted_on_its_machine() -> None:
    small = [on("a", index, 500 * MIB) for index in range(MAX_DEVICES)]
    placed = place(PlanRequest("m", BIG, Recipe()), [*small, on("b", 0, 20 * GIB)], RULES)
    assert isinstance(placed, Placement)
    assert nodes_of(placed) == {"b"}


def test_host_ram_of_two_machines_is_two_devices() -> None:
    without_gpus = [ram("a", GIB), ram("b", 64 * GIB)]
    placed = place(PlanRequest("m", BIG, Recipe()), without_gpus, RULES)
    assert isinstance(placed, Placement)
    assert placement_bytes(placed).keys() == {"host@b"}
    beside = replace(Recipe(), n_gpu_layers=0)
    held = place(PlanRequest("m", BIG, beside), [on("b", 0, 8 * GIB)], RULES)
    assert isinstance(held, Placement)
    assert placement_bytes(held).keys() == {"host@b"}, "an engine on the CPU of b takes the RAM of b"


def machine(*indices: int, described: bool = False) -> Inventory:
    cards = tuple(
        Device(DeviceId(f"GPU-{i}"), DeviceKind.GPU, "card", index=i, described=described) for i in indices
    )
    host = Device(host_id(None), DeviceKind.HOST, "host RAM")
    readings = {card.id: Reading(card.id, 1.0, free_bytes=GIB) for card in cards}
    ram_only = Inventory(InventorySource.HOST, (host,), {host.id: Reading(host.id, 1.0, free_bytes=GIB)})
    return Inventory(InventorySource.NVML, cards, readings, host=ram_only)


def test_an_inventory_of_a_node_says_so_in_every_device() -> None:
    found = machine(0, described=True).on_node("b")
    (card,) = found.devices
    assert (card.node, card.id, card.label) == ("b", "GPU-0@b", "b GPU 0 card")
    assert found.reading(card).free_bytes == GIB
    assert found.host is not None
    (host,) = found.host.devices
    assert (host.id, host.label) == ("host@b", "b host RAM")
    assert found.host.reading(host).free_bytes == GIB
    real = machine(0).on_node("b").devices[0]
    assert real.id == "GPU-0", "a driver's UUID is the card's wherever it is"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("b:0", {"GPU-b0"}),
        ("B:1", {"GPU-b1"}),
        ("b", {"GPU-b0", "GPU-b1"}),
        ("GPU-b1", {"GPU-b1"}),
        ("gpu", {"GPU-g0"}),
        ("gpu:0", {"GPU-g0"}),
        ("0", {"GPU-b0", "GPU-g0"}),
        ("b:2", set()),
        ("", set()),
    ],
)
def test_a_card_is_named_by_its_node_and_index_or_by_its_uuid(name: str, meant: set[str]) -> None:
    cards = [on("b", 0, GIB), on("b", 1, GIB), replace(on("g", 0, GIB))]
    devices = [budget.device for budget in cards]
    devices[2] = replace(devices[2], node="gpu")
    assert {device.id for device in devices if device.is_named(name)} == meant
    for device in devices:
        assert [each.id for each in devices if each.is_named(device.spelling)] == [device.id]


def test_a_bare_index_is_clear_only_on_one_machine() -> None:
    devices = [on("a", 0, GIB).device, on("b", 0, GIB).device, on("b", 1, GIB).device]
    assert unclear_index(["b:0", "GPU-a0"], devices) is None
    assert unclear_index(["0"], devices[1:]) is None
    told = unclear_index(["0"], devices)
    assert told is not None
    assert "`a:0`, `b:0`" in told
    found = machine(0, 1).on_node("b")
    assert [device.index for device in found.select(["b:1"]).devices] == [1]
    assert len(found.select(["b"]).devices) == 2
    with pytest.raises(UnknownDevice):
        found.select(["c:1"])
