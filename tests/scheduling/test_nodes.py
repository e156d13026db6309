"""Several machines in the scheduler: what is one machine's is not taken for another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.config.configuration import ModelEntry
from cotenant.daemon.core.fleet import find_device, spec_of
from cotenant.domain.decisions import DecisionKind
from cotenant.domain.devices import Device, DeviceId, DeviceKind, host_id
from cotenant.domain.errors import UnknownDevice
from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Refusal, Share
from cotenant.domain.units import GIB
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling import events
from cotenant.scheduling.model_spec import ModelSpec
from tests.scheduling.harness import GB, Bench, card, model
from tests.support.models.shapes import dense


def card_of(node: str, index: int, gb: float = 24) -> Device:
    return replace(card(index, gb), id=DeviceId(f"GPU-{node}{index}"), node=node)


def ram_of(node: str, gb: float) -> Device:
    return Device(host_id(node), DeviceKind.HOST, "host RAM", total_bytes=round(gb * GB), node=node)


def read(bench: Bench, *devices: Device, node: str) -> None:
    readings = tuple(
        DeviceReading(device, bench.now, device.total_bytes or 0, device.total_bytes, live=False)
        for device in devices
    )
    bench.send(events.DevicesRead(bench.now, readings, node))


def with_gpus(*gpus: str, gib: int = 1, **facts: object) -> ModelSpec:
    entry = ModelEntry("m", Path("m"), Recipe(n_ctx=256), dense(2, gib * GIB // 2), (), (), gpus=gpus)
    return spec_of(replace(entry, **facts), BudgetRules(), 2.0)  # type: ignore[arg-type]


def of_two_nodes(*models: ModelSpec) -> Bench:
    bench = Bench.of(models, [])
    read(bench, card_of("a", 0), card_of("a", 1), node="a")
    read(bench, card_of("b", 0), node="b")
    return bench


@pytest.mark.parametrize(("gpu", "device"), [("b:0", "GPU-b0"), ("b", "GPU-b0"), ("GPU-a1", "GPU-a1")])
def test_a_model_is_where_its_gpus_say(gpu: str, device: str) -> None:
    bench = of_two_nodes(with_gpus(gpu))
    bench.load("m")
    assert bench.where("m") == [device]


def test_a_bare_index_is_refused_with_the_right_spellings_until_there_is_one_machine() -> None:
    bench = of_two_nodes(with_gpus("0"))
    refusal = bench.refused[bench.ask("m")]
    assert "`gpus: [0]` is not clear" in refusal.text
    assert "`a:0`, `b:0`, the name of a machine" in refusal.text
    assert refusal.retry_after_s is None, "waiting does not help"
    read(bench, node="a")
    bench.load("m")
    assert bench.where("m") == ["GPU-b0"]


def test_gpus_that_operators_name_are_found_by_node_and_others_are_told_how() -> None:
    devices = [card_of("a", 0), card_of("b", 0)]
    assert find_device(devices, "b:0").id == "GPU-b0"
    assert find_device(devices, "b").id == "GPU-b0"
    with pytest.raises(UnknownDevice, match="'0' names several GPUs") as raised:
        find_device(devices, "0")
    assert "a:0 (a GPU 0 card), b:0 (b GPU 0 card)" in (raised.value.hint or "")


def test_a_split_for_two_gpus_goes_to_the_machine_with_two_and_waits_while_one_has_gone() -> None:
    bench = of_two_nodes(with_gpus(recipe=Recipe(n_ctx=256, tensor_split=(0.5, 0.5))))
    bench.load("m")
    assert bench.where("m") == ["GPU-a0", "GPU-a1"]
    read(bench, card_of("a", 0), node="a")
    bench.gone("m")
    assert "2 entries for 1 devices" in bench.refused[bench.ask("m")].text


def in_ram(name: str, gb: float) -> ModelSpec:
    def fit(budgets: Sequence[Budget]) -> Placement | Refusal:
        held = Parts(compute=round(gb * GB))
        return Placement(name, Recipe(), 1, 0, tuple(map(Share.unused, budgets)), host=held)

    return ModelSpec(name, fit, load_s=2.0)


def test_host_ram_of_each_machine_has_its_own_ledger() -> None:
    models = [in_ram("x", 16), in_ram("y", 16), in_ram("z", 16), in_ram("big", 30)]
    bench = Bench.of(models, [])
    read(bench, card_of("a", 0), ram_of("a", 24), node="a")
    read(bench, card_of("b", 0), ram_of("b", 24), node="b")
    bench.load("x")
    (ticket,) = bench.load("y")
    claimed = {device: bench.state.ledger.claimed_bytes(device) for device in bench.state.ledger.hosts}
    assert claimed == {host_id("a"): 16 * GB, host_id("b"): 16 * GB}
    assert "loading on b host RAM" in bench.told(DecisionKind.LOAD, "y")[0]
    bench.ask("z")
    assert "z" not in bench.loading
    bench.done(ticket)
    bench.wait(1)
    bench.gone("y")
    assert "z" in bench.loading, "on b, where y was: x is in use on a"
    assert "it holds 27.9 GiB of host RAM" in bench.refused[bench.ask("big")].text
    read(bench, card_of("b", 0), ram_of("b", 64), node="b")
    assert bench.ask("big") not in bench.refused


def test_decisions_name_the_machine_of_a_card() -> None:
    bench = of_two_nodes(model("m", 20), model("n", 20), model("o", 20))
    for name in "mno":
        bench.load(name)
    told = [bench.told(DecisionKind.LOAD, name)[0] for name in "mno"]
    assert [text.partition(":")[0] for text in told] == [
        "loading on a GPU 0 card",
        "loading on a GPU 1 card",
        "loading on b GPU 0 card",
    ]


def test_a_model_is_only_on_machines_that_its_nodes_name() -> None:
    bench = of_two_nodes(with_gpus(nodes=("b",)))
    bench.load("m")
    assert bench.where("m") == ["GPU-b0"]
    bench = of_two_nodes(with_gpus(nodes=("c",)))
    text = bench.refused[bench.ask("m")].text
    assert "the model's `nodes:` names other machines" in text
    bench = of_two_nodes(with_gpus("0", nodes=("b",)))
    bench.load("m")
    assert bench.where("m") == ["GPU-b0"], "of one machine an index is clear"
    bench = of_two_nodes(with_gpus("b:0", "b:1", nodes=("b",)))
    read(bench, node="b")
    assert bench.ask("m") in bench.refused, "where its GPUs are lost it goes to others of its machines only"


def test_a_machine_that_appears_twice_has_its_cards_once() -> None:
    bench = of_two_nodes(model("m", 20), model("n", 20), model("o", 20), model("p", 20))
    read(bench, replace(card_of("b", 0), node="ghost"), node="ghost")
    assert bench.state.ledger.devices.node_names() == {"a", "b"}
    for name in "mnop":
        bench.load(name)
    assert len(bench.state.residencies) == 3
    bench.send(events.NodeLost(bench.now, "ghost", "it was one"))
    assert len(bench.state.residencies) == 3
    bench.send(events.NodeLost(bench.now, "b", "it has not answered"))
    read(bench, replace(card_of("b", 0), node="ghost"), node="ghost")
    assert bench.state.ledger.devices.node_names() == {"a", "ghost"}, "the other name is the one that answers"


@pytest.mark.parametrize(("may_come", "again_s"), [(True, 30.0), (False, None)])
def test_where_machines_may_come_a_client_is_told_to_come_back(may_come: bool, again_s: float | None) -> None:
    bench = Bench.of([model("m", 20)], [], machines_come=may_come)
    assert bench.refused[bench.ask("m")].retry_after_s == again_s
