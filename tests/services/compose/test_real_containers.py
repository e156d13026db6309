"""Real podman containers, pinned, changed, failed and put back."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.services.model import ApplyState, Assignment, DeviceNames, GpuRef, OnFailure, ProgressState
from tests.services.compose.harness import DEVICES, Project, answering, idle, pin, saved
from tests.support.containers.container_bed import IMAGE

pytestmark = pytest.mark.slow

RESERVED = {
    "deploy": {
        "resources": {
            "reservations": {"devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]}
        }
    }
}
SEES = "ls /dev | grep nvidia"


async def by_name(project: Project) -> dict:
    return {each.service: each for each in await project.orchestrator.containers()}


async def test_a_service_on_several_gpus_sees_them_and_all_when_it_has_all(bed, tmp_path):
    project = Project(tmp_path, {"ai-llm": idle(**RESERVED), "ai-clip": idle()})
    both = Assignment("ai-llm", 0, more=(GpuRef(1),))
    everything = Assignment("ai-clip", 0, more=(GpuRef(1),), count="all")
    ended = await project.apply(saved(1, both, everything), ["ai-llm", "ai-clip"])
    assert ended.state is ApplyState.SUCCEEDED, ended
    assert project.inside(bed, "ai-llm", SEES) == "nvidia0\nnvidia1"
    assert project.inside(bed, "ai-clip", SEES) == "nvidia0\nnvidia1"
    states = await by_name(project)
    assert states["ai-llm"].assignment == both
    assert (states["ai-clip"].assignment, states["ai-clip"].assignment.count) == (everything, "all")


async def test_services_are_pinned_and_told_their_budget_and_others_left_alone(bed, tmp_path):
    project = Project(
        tmp_path,
        {
            "ai-llm": idle(**RESERVED),
            "ai-enrichment": idle(
                environment={"VRAM_BUDGET_GB": 6.8, "OTHER": "x"},
                devices=["/dev/null:/dev/video0", "nvidia.com/gpu=1"],
            ),
        },
    )
    ended = await project.apply(
        saved(1, pin("ai-llm", 1), pin("ai-enrichment", 0, 3.5)), ["ai-llm", "ai-enrichment"]
    )

    assert ended.state is ApplyState.SUCCEEDED, ended
    assert {each.state for each in ended.services} == {ProgressState.HEALTHY}
    assert project.inside(bed, "ai-llm", SEES) == "nvidia1"
    assert project.inside(bed, "ai-enrichment", f"{SEES}; echo $VRAM_BUDGET_GB $OTHER") == "nvidia0\n3.5 x"
    assert project.inside(bed, "ai-enrichment", "ls /dev/video0") == "/dev/video0"
    states = await by_name(project)
    assert states["ai-enrichment"].assignment == pin("ai-enrichment", 0, 3.5)
    untouched = states["ai-llm"].container_id

    ended = await project.apply(saved(2, pin("ai-llm", 1), pin("ai-enrichment", 1, 2)), ["ai-enrichment"])

    assert ended.state is ApplyState.SUCCEEDED, ended
    assert (await by_name(project))["ai-llm"].container_id == untouched
    assert project.inside(bed, "ai-enrichment", f"{SEES}; echo $VRAM_BUDGET_GB") == "nvidia1\n2"

    ended = await project.apply(saved(3, pin("ai-llm", None)), ["ai-llm"])

    assert ended.state is ApplyState.SUCCEEDED, ended
    assert project.inside(bed, "ai-llm", SEES) == "nvidia0", "its own reservation holds again"
    assert (await by_name(project))["ai-llm"].assignment is None


async def test_a_device_that_does_not_resolve_is_rolled_back(bed, tmp_path):
    project = Project(tmp_path, {"a": idle(), "b": idle()}, parallel=1)
    await project.apply(saved(1, pin("a", 0), pin("b", 0)), ["a", "b"])
    before = await by_name(project)

    ended = await project.apply(saved(2, pin("a", 7), pin("b", 1)), ["a", "b"], restore_number=1)

    assert ended.state is ApplyState.ROLLED_BACK
    assert "a did not come up" in ended.message
    assert "unresolvable CDI devices nvidia.com/gpu=7" in ended.message
    assert "a was restored" in ended.message
    assert [(each.state, each.gpu_index) for each in ended.services] == [
        (ProgressState.HEALTHY, 0),
        (ProgressState.PENDING, 1),
    ]
    after = await by_name(project)
    assert after["a"].running
    assert after["a"].assignment == pin("a", 0)
    assert after["b"].container_id == before["b"].container_id
    assert project.inside(bed, "a", SEES) == "nvidia0"
    assert project.orchestrator.edited() == ()
    assert "configuration 1," in (tmp_path / "config" / "docker-compose.gpu-override.yml").read_text()


async def test_a_first_apply_that_fails_goes_back_to_what_was_there(bed, tmp_path):
    project = Project(tmp_path, {"a": idle(**RESERVED)})
    assert (await project.apply(saved(1), ["a"])).state is ApplyState.SUCCEEDED

    ended = await project.apply(saved(2, pin("a", 7)), ["a"], restore_number=None)

    assert ended.state is ApplyState.ROLLED_BACK
    assert project.inside(bed, "a", SEES) == "nvidia0"
    assert not (tmp_path / "config" / "docker-compose.gpu-override.yml").exists()


async def test_what_failed_is_left_where_that_is_asked_for(bed, tmp_path):
    project = Project(tmp_path, {"a": idle()})
    await project.apply(saved(1, pin("a", 0)), ["a"])

    ended = await project.apply(saved(2, pin("a", 7)), ["a"], on_failure=OnFailure.KEEP, restore_number=1)

    assert ended.state is ApplyState.FAILED
    assert "nvidia.com/gpu=7" in ended.services[0].message
    assert not (await by_name(project))["a"].running


async def test_a_containers_own_check_is_waited_for(bed, tmp_path):
    check = {"test": ["CMD", "test", "-f", "/tmp/well"], "interval": "1s"}
    late = ["sh", "-c", "trap 'exit 0' TERM; sleep 1; touch /tmp/well; sleep 600 & wait"]
    project = Project(
        tmp_path,
        {
            "well": {**idle(), "command": late, "healthcheck": check},
            "ill": {**idle(), "healthcheck": check},
        },
    )
    assert (await project.apply(saved(1, pin("well", 0)), ["well"])).state is ApplyState.SUCCEEDED
    assert (await by_name(project))["well"].healthy is True

    project.services["ill"] = replace(project.services["ill"], health_timeout_s=0.5)
    ended = await project.apply(saved(2, pin("well", 0), pin("ill", 0)), ["ill"], on_failure=OnFailure.KEEP)

    assert ended.state is ApplyState.FAILED
    assert "ill did not come up: it was not healthy within 0.5 s: its check says" in ended.message


async def test_an_http_port_is_asked_until_it_answers(bed, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve = ["sh", "-c", f"trap 'exit 0' TERM; sleep 0.5; httpd -f -p 127.0.0.1:{port} -h /www & wait"]
    project = Project(tmp_path, {"a": {"image": IMAGE, "command": serve, "network_mode": "host"}})
    url = f"http://127.0.0.1:{port}/index.html"
    project.services["a"] = replace(project.services["a"], health_url=url)

    ended = await project.apply(saved(1, pin("a", 0)), ["a"])

    assert ended.state is ApplyState.SUCCEEDED, ended

    with answering(404) as url:
        project.services["a"] = replace(project.services["a"], health_url=url, health_timeout_s=0.5)
        ended = await project.apply(saved(2, pin("a", 1)), ["a"], on_failure=OnFailure.KEEP)

    assert f"it was not healthy within 0.5 s: {url} answers 404" in ended.message


async def test_the_last_words_of_a_container_that_dies_are_told(bed, tmp_path):
    dies = {**idle(), "command": ["sh", "-c", "echo CUDA error: out of memory >&2; exit 3"]}
    project = Project(tmp_path, {"a": dies}, device_ids=DeviceNames.UUID)

    ended = await project.apply(saved(1, pin("a", 0)), ["a"], on_failure=OnFailure.KEEP)

    assert ended.message == (
        "a did not come up: its container ended with status 3: CUDA error: out of memory."
    )


async def test_a_daemon_killed_in_the_middle_tells_the_truth_when_it_is_back(bed, tmp_path):
    """`a` has been recreated, and `b`'s compose command has just begun; it goes on alone."""
    command = tmp_path / "compose.sh"
    command.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *"--no-deps b") [ -e {tmp_path}/hold ] && touch {tmp_path}/began\n'
        f"while [ -e {tmp_path}/hold ]; do sleep 0.02; done;; esac\n"
        'exec podman-compose "$@"\n'
    )
    command.chmod(0o755)
    project = Project(tmp_path, {"a": idle(), "b": idle()}, command=[str(command)], parallel=1)
    await project.apply(saved(1, pin("a", 0), pin("b", 0)), ["a", "b"])
    project.orchestrator.write(saved(2, pin("a", 1), pin("b", 1)), list(project.services.values()), DEVICES)

    (tmp_path / "hold").touch()
    await _killed_in_the_middle(tmp_path, project)

    found = await project.anew(patience_s=0.0).unfinished()
    assert found.state is ApplyState.INTERRUPTED
    assert [(each.service, each.state, each.gpu_index) for each in found.services] == [
        ("a", ProgressState.HEALTHY, 1),
        ("b", ProgressState.PENDING, 0),
    ]
    assert "Wait for it" in found.message

    (tmp_path / "hold").unlink()
    found = await project.anew().unfinished()
    assert [each.state for each in found.services] == [ProgressState.HEALTHY] * 2
    assert project.inside(bed, "b", SEES) == "nvidia1"

    bed.podman("rm", "-f", "-t", "0", f"{project.name}_b_1")
    found = await project.anew().unfinished()
    assert [(each.state, each.message) for each in found.services] == [
        (ProgressState.HEALTHY, "it runs as configured"),
        (ProgressState.FAILED, "it is down"),
    ]

    project.orchestrator = project.anew()
    assert (await project.apply(saved(3, pin("a", 1), pin("b", 0)), ["b"])).number == 3
    assert await project.anew().unfinished() is None


async def _killed_in_the_middle(folder: Path, project: Project) -> None:
    driver = f"""
import asyncio
from pathlib import Path
from cotenant.services.model import ApplyOrder, Service
from tests.services.compose.harness import orchestrator, pin
folder = Path({str(folder)!r})
compose = orchestrator(
    folder / "docker-compose.prod.yml", folder,
    project={project.name!r}, command=(str(folder / "compose.sh"),), parallel=1, settle_s=0.1,
)
before, after = ({{name: pin(name, gpu) for name in "ab"}} for gpu in (0, 1))
order = ApplyOrder(2, [Service("a"), Service("b")], before, after, restore_number=1)
asyncio.run(compose.apply(order, lambda status: None))
"""
    argv = [sys.executable, "-c", driver]
    daemon = subprocess.Popen(argv, start_new_session=True)  # noqa: ASYNC220
    deadline = time.monotonic() + 60
    while not (folder / "began").exists():
        assert daemon.poll() is None
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    os.killpg(daemon.pid, signal.SIGKILL)
    daemon.wait()
