"""What operators are told of devices."""

import contextlib
import subprocess
from collections.abc import Iterator

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
