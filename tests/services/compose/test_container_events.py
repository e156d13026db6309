"""Events as podman 4.3 and docker write them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.services.compose.container_events import (
    ContainerChange,
    ContainerEvent,
    events_command,
    read_event,
)

ID = "9df29ab5a99b50c8cda5b8789f99f2e409e0c0ef7272e009f9b4496a82e8b571"
LABELS = {"com.docker.compose.service": "ai-llm"}


def podman(status: str, exit_code: int | None = None) -> str:
    told = {
        "ID": ID,
        "Name": "prod_ai-llm_1",
        "Status": status,
        "Time": "2026-11-21T07:05:13.720322431Z",
        "Type": "container",
        "Attributes": LABELS,
    }
    return json.dumps(told if exit_code is None else {**told, "ContainerExitCode": exit_code})


def docker(action: str, exit_code: int | None = None) -> str:
    ended = {} if exit_code is None else {"exitCode": str(exit_code)}
    attributes = {**LABELS, **ended, "image": "vllm", "name": "prod-ai-llm-1"}
    told = {"status": action, "id": ID, "from": "vllm", "Type": "container", "Action": action}
    return json.dumps({**told, "Actor": {"ID": ID, "Attributes": attributes}, "time": 1763709913})


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (podman("died", 1), ContainerChange.FAILED),
        (podman("died", 137), ContainerChange.KILLED),
        (docker("die", 1), ContainerChange.FAILED),
        (docker("die", 137), ContainerChange.KILLED),
        (docker("oom"), ContainerChange.OUT_OF_MEMORY),
    ],
)
def test_a_container_that_ends_badly_is_told_by_its_service(line: str, change: ContainerChange) -> None:
    assert read_event(line) == ContainerEvent(change, "ai-llm", ID)


@pytest.mark.parametrize(
    "line",
    [
        podman("create"),
        podman("cleanup"),
        podman("remove"),
        podman("died"),
        podman("died", 0),
        podman("died", 143),
        docker("start"),
        docker("die", 0),
        docker("exec_create: sh -c oom"),
        "",
        "[]",
        "null",
        "{",
        '{"Status":"died","Name":7,"ID":"x","ContainerExitCode":1}',
        "time=2026 level=warning msg=nothing",
    ],
)
def test_what_is_of_no_concern_is_nothing(line: str) -> None:
    assert read_event(line) is None


def test_a_container_without_a_service_goes_by_its_own_name() -> None:
    line = podman("died", 1).replace("com.docker.compose.service", "other")

    event = read_event(line)

    assert event is not None
    assert event.name == "prod_ai-llm_1"


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_nothing_that_is_read_is_a_fault(line: str | bytes) -> None:
    assert read_event(line) is None


def test_each_engine_is_asked_in_its_own_words() -> None:
    assert events_command("/usr/bin/podman")[-1] == "json"
    assert events_command("docker")[-1] == "{{json .}}"
