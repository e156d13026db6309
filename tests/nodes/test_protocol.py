"""Messages between daemon and agent: what goes in comes out, and what is wrong is said in words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.devices import Device, DeviceId, GpuProcess, Inventory, Reading
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import (
    Endpoint,
    EngineBuild,
    EngineDevice,
    EngineEnd,
    EngineOptions,
    EngineReport,
    ReportedDevice,
)
from cotenant.domain.errors import CotenantError, EngineLoadFailed, HeaderIncomplete
from cotenant.domain.exit_causes import Cause, Lacking
from cotenant.domain.launching import LauncherKind, LaunchOptions
from cotenant.domain.models import Parts
from cotenant.domain.nodes import BadNodeMessage
from cotenant.domain.vendors import InventorySource
from cotenant.nodes.file_messages import LogBytes
from cotenant.nodes.messages import (
    AgentEvent,
    EngineBecameReady,
    EngineGone,
    EngineLeft,
    EngineState,
    EngineStatus,
    Events,
    FileProgress,
    GateAddress,
    HelloAnswer,
    Identity,
    InstallProgress,
    ReadingTaken,
    Start,
)
from cotenant.nodes.protocol import METHODS, error_body, error_from, from_json, to_json
from cotenant.planning.compute_modes import Admission
from tests.support.engines.orders import gpu, gpu_order, host_order

ENDPOINT = Endpoint("127.0.0.1", 4711, key="k", model="m", kind=EngineKind.VLLM, listeners=frozenset({3, 5}))
ORDER = replace(
    gpu_order((3, 5)),
    projector_path=Path("/models/p.gguf"),
    env={"A": "b"},
    args=("--flag", "1"),
    options=EngineOptions(command=("serve", "{port}"), address=ENDPOINT, sleep=1),
    launch=LaunchOptions(LauncherKind.PODMAN, "image"),
    planned_gpus=(gpu(0), gpu(1)),
)
BUILD = EngineBuild(
    EngineKind.LLAMA_CPP, "llama-server", "/bin/l", "b1", (EngineDevice("CUDA0", "card", 1, None),)
)
REPORT = EngineReport((ReportedDevice("CUDA0", None, Parts(weights=5, kv=2)),))


def through_json(value: object) -> object:
    """What the other side reads of a message."""
    return from_json(type(value), json.loads(json.dumps(to_json(value))))


def inventory() -> Inventory:
    device: Device = gpu(0)
    process = GpuProcess(12, "python", 5)
    reading = Reading(device.id, 3.5, 10, 20, processes=(process,), temperature_c=40.0)
    found = Inventory(InventorySource.NVML, (device,), {device.id: reading}, "550", problems=("one is lost",))
    return replace(found, host=Inventory(InventorySource.HOST, (), {}))


@pytest.mark.parametrize(
    "order", [ORDER, host_order(Path("m.gguf"), tensor_split=(0.5, 0.5), n_gpu_layers="auto")]
)
def test_an_order_arrives_as_it_was_sent(order: object) -> None:
    assert through_json(order) == order


def test_what_an_agent_tells_arrives_as_it_was_sent() -> None:
    status = EngineStatus(
        "e", ORDER, EngineState.READY, "t", 12, ENDPOINT, BUILD, REPORT, Path("/logs/m.log")
    )
    answer = HelloAnswer(
        Identity("m", "b", "f", "n"),
        "1",
        1,
        ReadingTaken(inventory()),
        (status,),
        (BUILD,),
        3,
        9.25,
        4.0,
        GateAddress("10.0.0.1", 8082),
    )
    found = through_json(answer)
    assert found == answer
    assert isinstance(found, HelloAnswer)
    assert found.engines[0].endpoint is not None
    assert found.engines[0].endpoint.listeners == {3, 5}


def test_every_event_arrives_as_what_it_is() -> None:
    error = error_body(
        EngineLoadFailed("no", hint="do", cause=Cause.GPU_MEMORY_LOADING, lacking=Lacking(5, 1))
    )
    events: tuple[AgentEvent, ...] = (
        ReadingTaken(inventory(), {12: "e"}, {gpu(0).id: Admission(48, "why", "mps")}, ("told",), 1),
        EngineBecameReady("e", ENDPOINT, REPORT, 2),
        EngineLeft("e", EngineEnd("died", Cause.HUNG, cuts_requests=True), seq=3),
        EngineLeft("e", error=error, seq=4),
        EngineGone("e", 5),
        FileProgress(Path("/m"), 5, 10, error=error, seq=6),
        InstallProgress(1, "a line", BUILD, error, seq=7),
    )
    assert through_json(Events(events, 1.5)) == Events(events, 1.5)


def test_bytes_of_a_log_survive_whatever_they_are() -> None:
    found = through_json(LogBytes(b"\xff\x00\n", 5, 8, None))
    assert isinstance(found, LogBytes)
    assert found.data == b"\xff\x00\n"


def errors(kind: type[CotenantError] = CotenantError) -> list[type[CotenantError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in errors(below))]


@pytest.mark.parametrize("kind", errors())
def test_an_error_is_raised_again_as_what_it_was(kind: type[CotenantError]) -> None:
    error = kind("the message", hint="the hint")
    error.retry_after_s = 4.5
    again = error_from(through_json(error_body(error)))  # type: ignore[arg-type]
    assert type(again) is kind
    assert (again.message, again.hint, again.retry_after_s) == ("the message", "the hint", 4.5)


def test_the_cause_of_a_failed_load_travels() -> None:
    sent = EngineLoadFailed("no", cause=Cause.PORT_IN_USE, lacking=Lacking(7, 0))
    again = error_from(error_body(sent))
    assert isinstance(again, EngineLoadFailed)
    assert (again.cause, again.lacking) == (Cause.PORT_IN_USE, Lacking(7, 0))
    assert HeaderIncomplete.code in {kind.code for kind in errors()}


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"epoch": "x", "id": "e", "order": {}}, "epoch"),
        ([1, 2], "the whole of it"),
        (None, "the whole of it"),
        ({"epoch": 1, "id": "e"}, "order"),
    ],
)
def test_what_is_no_message_is_refused_by_the_name_of_its_field(body: object, where: str) -> None:
    with pytest.raises(BadNodeMessage, match=f"not a Start: {where}"):
        from_json(Start, body)


def test_methods_have_names_of_their_own() -> None:
    assert len({method.name for method in METHODS}) == len(METHODS)
    assert DeviceId("x")
