"""What operators are told of devices."""

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import replace

from cotenant.daemon.core.status import device_statuses
from cotenant.domain.devices import Device, DeviceId, DeviceKind, GpuProcess, Reading
from cotenant.planning.ledger import DeviceReading
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.scheduler import Scheduler

CARD = Device(DeviceId("GPU-a"), DeviceKind.GPU, "RTX 3090", 0)


@contextlib.contextmanager
def process(group: int) -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"], process_group=group) as child:
        yield child.pid
        child.kill()


def test_a_child_of_an_engine_is_no_stranger_on_the_card():
    state = Scheduler(SchedulerSettings()).state
    state.ledger.readings[CARD.id] = DeviceReading(CARD, 0.0, capacity_bytes=1, free_bytes=1)
    with process(0) as engine, process(engine) as worker, process(0) as stranger:
        held = tuple(GpuProcess(pid, None, 1) for pid in (engine, worker, stranger))
        (card,) = device_statuses(state, {CARD.id: Reading(CARD.id, 0.0, processes=held)}, lambda _: {engine})
    assert card.processes is not None
    assert [process.pid for process in card.processes] == [stranger]


def test_for_how_long_a_machine_is_silent_is_as_of_now_and_other_reasons_are_as_they_were():
    state = Scheduler(SchedulerSettings()).state
    for node in ("b", "c"):
        on_it = replace(CARD, id=DeviceId(f"GPU-{node}"), node=node)
        state.ledger.readings[on_it.id] = DeviceReading(on_it, 0.0, capacity_bytes=1, free_bytes=1)
    state.ledger.silent.update(b="node b has not answered for 3.0 s", c="the agent of c has ended")
    told = device_statuses(state, {}, silent_s=lambda node: 8.0)
    assert [each.left_out for each in told] == [
        "node b has not answered for 8.0 s",
        "the agent of c has ended",
    ]
