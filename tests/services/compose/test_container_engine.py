import errno
import json
import os

import pytest

from cotenant.domain.errors import ContainerEngineMissing
from cotenant.services.compose.container_engine import ContainerEngine, states
from cotenant.services.model import ContainerState
from tests.services.compose.harness import pin
from tests.support.containers.fake_docker import install


def inspected(container_id: str, service: str, *, state: dict | None = None, **more) -> dict:
    """What `docker container inspect` says, as far as it is read."""
    labels = {
        "com.docker.compose.project": "p",
        "com.docker.compose.service": service,
        "com.docker.compose.oneoff": "False",
        "cotenant.assignment": '{"gpu":1}',
    }
    return {
        "Id": container_id,
        "RestartCount": 0,
        "State": {"Status": "running", "Running": True, "ExitCode": 0, "StartedAt": "now", **(state or {})},
        "Config": {"Labels": {**labels, **more.pop("labels", {})}, **more.pop("config", {})},
        "HostConfig": {"DeviceRequests": more.pop("requests", None)},
    }


async def seen(folder, *containers: dict):
    program = install(
        folder,
        {
            "ps": {"out": "".join(f"{each['Id']}\n" for each in containers)},
            "inspect": {"out": json.dumps(containers)},
        },
    )
    return await ContainerEngine([str(program)], "p").containers()


async def test_what_docker_was_asked_for_is_read(tmp_path):
    def request(**told) -> list[dict]:
        return [{"Driver": "nvidia", "Capabilities": [["gpu"]], **told}]

    found = await seen(
        tmp_path,
        inspected("a", "one", requests=request(Count=0, DeviceIDs=["1"])),
        inspected("b", "every", requests=request(Count=-1, DeviceIDs=None)),
        inspected("c", "none"),
        inspected("d", "cdi", requests=[{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0"]}]),
    )
    assert [sorted(each.gpus) for each in found] == [["1"], ["all"], [], ["0"]]


async def test_containers_of_one_command_do_not_count(tmp_path):
    found = await seen(
        tmp_path, inspected("a", "x"), inspected("b", "x", labels={"com.docker.compose.oneoff": "True"})
    )
    assert [each.id for each in found] == ["a"]


async def test_a_service_of_several_containers_is_as_well_as_the_worst(tmp_path):
    found = await seen(
        tmp_path,
        inspected("a", "x", state={"Health": {"Status": "healthy"}}),
        inspected("b", "x", state={"Health": {"Status": "unhealthy"}}),
        inspected("c", "y", state={"Status": "exited", "Running": False}),
        inspected("d", "z", state={"Health": {"Status": "starting"}}),
    )
    assert states(found, ["x", "y", "z", "gone"]) == (
        ContainerState("x", "a", running=True, healthy=False, assignment=pin("x", 1)),
        ContainerState("y", "c", running=False, healthy=None, assignment=pin("y", 1)),
        ContainerState("z", "d", running=True, healthy=None, assignment=pin("z", 1)),
        ContainerState("gone"),
    )


@pytest.mark.slow
async def test_an_engine_that_fails_is_told_with_its_reason(tmp_path):
    program = install(tmp_path, {"ps": {"err": "Cannot connect to the Docker daemon.\n", "rc": 1}})
    with pytest.raises(ContainerEngineMissing, match="Cannot connect to the Docker daemon"):
        await ContainerEngine([str(program)], "p").containers()


@pytest.mark.parametrize("said", ["", "nonsense", "7", "[7]", '[{"State": []}]', "[" * 5000])
async def test_an_engine_that_says_nonsense_is_told_of(tmp_path, said):
    program = install(tmp_path, {"ps": {"out": "a\n"}, "inspect": {"out": said}})
    with pytest.raises(ContainerEngineMissing, match="unknown format"):
        await ContainerEngine([str(program)], "p").containers()


async def test_a_command_that_cannot_be_followed_is_told_of(tmp_path, monkeypatch):
    def none_left(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", none_left)
    program = install(tmp_path, {})
    with pytest.raises(ContainerEngineMissing, match="Too many open files"):
        await ContainerEngine([str(program)], "p").containers()
