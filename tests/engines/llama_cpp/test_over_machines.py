"""What a llama-server is told of GPUs that other machines lend it."""

from dataclasses import replace
from itertools import pairwise

import pytest

from cotenant.analysis.calibration import compare
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import (
    Endpoint,
    EngineBuild,
    EngineDevice,
    EngineForm,
    EngineReport,
    RemotePart,
    ReportedDevice,
)
from cotenant.domain.errors import EngineMissing
from cotenant.domain.models import Parts, SplitMode
from cotenant.domain.placements import Share
from cotenant.engines.launch.plan import visible_devices
from cotenant.engines.llama_cpp.arguments import arguments_for
from cotenant.engines.llama_cpp.host_facts import HostFacts
from cotenant.engines.llama_cpp.over_machines import check_versions, lending_plan, with_lent_gpus
from cotenant.engines.llama_cpp.server_flags import ServerFlags, server_argv
from cotenant.interfaces import EngineOrder
from tests.support.engines.orders import gpu_order

FLAGS = "-m -a --host --port -c -np -b -ub -t --threads-http -ctk -ctv -fa -sm -ngl -ts --rpc --device"
BUILD = EngineBuild(
    EngineKind.LLAMA_CPP,
    EngineForm.SERVER,
    "llama-server",
    "7 (abc)",
    (EngineDevice("CUDA0", "card"),),
    rpc_server="/opt/ggml-rpc-server",
)


def over(*nodes: str, described: str = "") -> EngineOrder:
    """An order of ten layers a GPU, one of each of these machines; the first runs it."""

    def on(share: Share, node: str) -> Share:
        device = replace(share.device, node=node, described=node in described)
        return replace(share, budget=replace(share.budget, device=device))

    order = gpu_order((10,) * len(nodes))
    shares = tuple(map(on, order.placement.shares, nodes))
    parts = tuple(
        RemotePart(node, "7 (abc)", Endpoint("127.0.0.1", 5000 + number))
        for number, node in enumerate(dict.fromkeys(nodes[1:]))
        if node != nodes[0]
    )
    return replace(order, placement=replace(order.placement, shares=shares), parts=parts)


def argv(order: EngineOrder) -> dict[str, str]:
    arguments = with_lent_gpus(order, arguments_for(order, HostFacts(8, False), 1), "CUDA")
    lines = "\n".join([*(f"{flag} VALUE  it is" for flag in FLAGS.split()), "--kv-unified  it is"])
    return dict(pairwise(server_argv(arguments, ServerFlags.parse(lines))))


def test_its_own_gpus_come_first_and_then_those_that_others_lend() -> None:
    order = over("b", "b", "c", "c", "d")
    assert [device.node for device in visible_devices(order)] == ["b", "b"]
    words = argv(order)
    assert words["--rpc"] == "127.0.0.1:5001,127.0.0.1:5002"
    assert words["--device"] == "CUDA0,CUDA1,RPC0,RPC1,RPC2"
    assert words["-ts"] == "10,10,10,10,10"
    assert words["-ngl"] == "50"
    assert words["-sm"] == SplitMode.LAYER


def test_described_gpus_are_the_cpu_of_each_machine() -> None:
    words = argv(over("b", "c", "c", described="bc"))
    assert words["--device"] == "RPC0"
    assert words["-ngl"] == "20", "the first ten layers stay in host RAM"
    assert "-ts" not in words


def test_what_lends_gpus_listens_on_the_loopback_address_and_sees_those_alone() -> None:
    order = over("b", "c", "c")
    lends = replace(order, placement=order.placement.on("c"), parts=(), lends_gpus=True)
    plan = lending_plan(BUILD, lends, 4711)
    assert plan.argv == ("/opt/ggml-rpc-server", "--host", "127.0.0.1", "--port", "4711")
    assert [device.id for device in plan.devices] == [s.device.id for s in order.placement.shares[1:]]
    assert plan.key is None
    assert plan.with_key().key is None


def test_machines_with_different_builds_do_not_share_a_model() -> None:
    order = over("b", "c")
    check_versions(order, BUILD)
    with pytest.raises(EngineMissing, match=r"llama.cpp of b is 8, that of c is 7 \(abc\)"):
        check_versions(order, replace(BUILD, version="8"))


def test_a_lent_gpu_is_not_taken_for_one_of_its_own_at_the_same_bus_address() -> None:
    order = over("b", "c")
    own, lent = order.placement.shares
    device = replace(lent.device, pci_bus_id=own.device.pci_bus_id)
    lent = replace(lent, budget=replace(lent.budget, device=device))
    report = EngineReport(
        (
            ReportedDevice("CUDA0", own.device.pci_bus_id, Parts(weights=1)),
            ReportedDevice("RPC0", None, Parts(weights=2)),
        )
    )
    rows = compare(replace(order.placement, shares=(own, lent)), report)
    assert [row.reported and row.reported.weights for row in rows[:2]] == [1, 2]
