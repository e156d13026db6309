from dataclasses import replace

import pytest

from cotenant.domain.devices import DeviceId
from cotenant.services.compose.apply_progress import ApplyRecord, interrupted, load_record, save_record
from cotenant.services.model import (
    ApplyState,
    ApplyStatus,
    Assignment,
    ContainerState,
    GpuRef,
    ProgressState,
    ServiceProgress,
)
from tests.services.compose.harness import AT, pin

RECORD = ApplyRecord(
    ApplyStatus(
        7, ApplyState.RUNNING, AT, services=(ServiceProgress("a", ProgressState.RECREATING, gpu_index=1),)
    ),
    before={"a": pin("a", 0)},
    after={"a": Assignment("a", 1, DeviceId("GPU-x"), 3.5)},
)


def runs(assignment: Assignment | None, *, healthy: bool | None = None) -> ContainerState:
    return ContainerState("a", "id", running=True, healthy=healthy, assignment=assignment)


@pytest.mark.parametrize(
    ("container", "busy", "state", "message"),
    [
        (runs(RECORD.after["a"]), False, ProgressState.HEALTHY, "it runs as configured"),
        (
            runs(RECORD.after["a"], healthy=False),
            False,
            ProgressState.FAILED,
            "it runs as configured, and its check fails",
        ),
        (runs(pin("a", 0)), False, ProgressState.PENDING, "it runs as before"),
        (
            runs(pin("a", 2)),
            False,
            ProgressState.FAILED,
            "it runs neither as before nor as configured: on GPU 2",
        ),
        (
            runs(None),
            False,
            ProgressState.FAILED,
            "it runs neither as before nor as configured: without a pin",
        ),
        (ContainerState("a", "id"), False, ProgressState.FAILED, "it is down"),
        (ContainerState("a"), True, ProgressState.RECREATING, "its compose command is still running"),
    ],
)
def test_the_containers_say_what_became_of_an_apply(container, busy, state, message):
    found = interrupted(RECORD, [container], command_running=busy, at=AT + 60)

    assert found.state is ApplyState.INTERRUPTED
    assert found.finished_at == AT + 60
    assert (found.services[0].state, found.services[0].message) == (state, message)
    assert f"a: {message}." in found.message
    assert ("Wait for it" if busy else "Apply again to finish, or roll back") in found.message


@pytest.mark.parametrize("before", [None, pin("a", None, 3.0)])
def test_without_a_gpu_nothing_tells_two_containers_apart(before):
    record = replace(RECORD, before={} if before is None else {"a": before})
    found = interrupted(record, [runs(None)], command_running=False, at=AT)
    assert found.services[0].message == "it runs as before"


def test_another_budget_is_another_container():
    found = interrupted(RECORD, [runs(pin("a", 0, 2.0))], command_running=False, at=AT)
    assert found.services[0].message == "it runs neither as before nor as configured: on GPU 0"


def test_all_gpus_of_a_container_are_told():
    found = interrupted(RECORD, [runs(replace(pin("a", 0), more=(GpuRef(2),)))], command_running=False, at=AT)
    (step,) = found.services
    assert (step.gpu_index, step.more) == (0, (GpuRef(2),))


def test_without_an_engine_nothing_is_claimed():
    found = interrupted(RECORD, None, command_running=False, at=AT)
    assert found.services[0].state is ProgressState.RECREATING
    assert "its state is unknown" in found.message


def test_a_record_reads_back_as_it_was(tmp_path):
    record = replace(RECORD, status=replace(RECORD.status, finished_at=AT, message="x"))
    save_record(tmp_path, record)
    assert load_record(tmp_path) == record


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"status": 5}'])
def test_a_damaged_record_is_none(tmp_path, text):
    assert load_record(tmp_path) is None
    (tmp_path / "apply.json").write_text(text)
    assert load_record(tmp_path) is None
