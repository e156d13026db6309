"""Applying through docker's command line, which need not be there."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.errors import ComposeFileError, ContainerEngineMissing, GeneratedFileEdited
from cotenant.services.compose.generated_files import GeneratedFiles
from cotenant.services.compose.orchestrator import ComposeOrchestrator
from cotenant.services.compose.override import ASSIGNMENT_LABEL, assignment_label
from cotenant.services.model import (
    ApplyOrder,
    ApplyState,
    Assignment,
    ContainerState,
    GpuRef,
    OnFailure,
    ProgressState,
    Service,
)
from tests.services.compose.harness import DEVICES, orchestrator, pin, saved
from tests.support.containers.fake_docker import calls, install

pytestmark = pytest.mark.slow


class Host:
    """A machine with docker, its compose file and its orchestrator."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        monkeypatch.setenv("PATH", str(self.bin))
        self.file = folder / "docker-compose.prod.yml"
        self.file.write_text("services: {a: {image: x, gpus: all}, b: {image: x}}")
        self.docker = install(self.bin, self.answers())
        self.told: list[ApplyState] = []

    def answers(self, *containers: dict, **more: dict) -> dict[str, dict]:
        return {
            "compose version": {"out": "v2.29"},
            "version --format": {"out": "27.1"},
            "ps -aq": {"out": "".join(f"{each['Id']}\n" for each in containers)},
            "inspect": {"out": json.dumps(containers)},
            **more,
        }

    def orchestrator(self, **options) -> ComposeOrchestrator:
        settings = {"settle_s": 0.01, "project": "p", "command_timeout_s": 120.0, **options}
        return orchestrator(self.file, self.folder, **settings)


def container(service: str, gpu: int, *, given: list[str] | None = None) -> dict:
    return {
        "Id": f"{service}0",
        "State": {"Status": "running", "Running": True, "StartedAt": "now"},
        "Config": {
            "Labels": {
                "com.docker.compose.service": service,
                ASSIGNMENT_LABEL: assignment_label(pin(service, gpu)),
            }
        },
        "HostConfig": {"DeviceRequests": [{"Count": -1 if not given else 0, "DeviceIDs": given}]},
    }


def order(number: int, *after: Assignment, before: tuple[Assignment, ...] = (), **options) -> ApplyOrder:
    return ApplyOrder(
        number,
        [Service(each.service, health_timeout_s=120) for each in after],
        {each.service: each for each in before},
        {each.service: each for each in after},
        **options,
    )


@pytest.fixture
def host(tmp_path, monkeypatch) -> Host:
    return Host(tmp_path, monkeypatch)


async def test_docker_compose_is_given_the_files_in_order_and_one_service(host):
    install(host.bin, host.answers(container("a", 1, given=["1"])))
    orchestrator = host.orchestrator()
    orchestrator.write(saved(1, pin("a", 1)), [], DEVICES)

    ended = await orchestrator.apply(order(1, pin("a", 1)), lambda status: host.told.append(status.state))

    assert ended.state is ApplyState.SUCCEEDED, ended
    assert ended.message == "a was recreated."
    config = host.folder / "config"
    files = [
        host.file,
        config / "docker-compose.gpu-reset.yml",
        config / "docker-compose.gpu-override.yml",
    ]
    named = [word for path in files for word in ("-f", str(path))]
    up = ["up", "-d", "--force-recreate", "--no-deps", "a"]
    assert calls(host.docker) == [["compose", "-p", "p", *named, *up]]
    assert await orchestrator.unfinished() is None


@pytest.mark.parametrize("given", [["0", "1"], ["0"]])
async def test_each_step_names_all_gpus_of_a_service(host, given):
    install(host.bin, host.answers(container("a", 0, given=given)))
    orchestrator = host.orchestrator()
    both = replace(pin("a", 0), more=(GpuRef(1),))
    orchestrator.write(saved(1, both), [], DEVICES)
    steps = []

    await orchestrator.apply(
        order(1, both, before=(pin("a", 1),)), lambda status: steps.extend(status.services)
    )

    # The container that has one of the two GPUs is restored to its own.
    wanted = {(0, (GpuRef(1),))} | ({(1, ())} if given == ["0"] else set())
    assert {(each.gpu_index, each.more) for each in steps} == wanted
    wrong = {each.message for each in steps if each.state is ProgressState.FAILED}
    assert any("it got GPU 0 instead of GPU 0, 1" in text for text in wrong) == (given == ["0"])


async def test_a_service_that_was_given_other_gpus_has_failed(host):
    install(host.bin, host.answers(container("a", 1)))
    orchestrator = host.orchestrator()
    orchestrator.write(saved(1, pin("a", 1)), [], DEVICES)

    ended = await orchestrator.apply(order(1, pin("a", 1), on_failure=OnFailure.KEEP), lambda _: None)

    assert ended.state is ApplyState.FAILED
    assert ended.message == "a did not come up: it got GPU all instead of GPU 1."


async def test_what_is_kept_leaves_the_others_untouched(host):
    install(host.bin, host.answers(up={"err": "Error: no room\n", "rc": 1}))
    orchestrator = host.orchestrator(parallel=1)
    orchestrator.write(saved(1, pin("a", 1), pin("b", 1)), [], DEVICES)

    ended = await orchestrator.apply(
        order(1, pin("a", 1), pin("b", 1), on_failure=OnFailure.KEEP), lambda _: None
    )

    assert ended.message == "a did not come up: Error: no room. b was not touched."
    assert [each.state for each in ended.services] == [ProgressState.FAILED, ProgressState.PENDING]
    assert (host.folder / "config" / "docker-compose.gpu-override.yml").exists()


async def test_a_rollback_that_fails_too_says_what_is_down(host):
    for limit_s in (0.3, 3, 30):  # Within one of them both calls are begun, and noted.
        docker = install(host.bin, host.answers(up={"hang": True}))
        docker.with_suffix(".calls").unlink(missing_ok=True)
        orchestrator = host.orchestrator(command_timeout_s=limit_s)
        orchestrator.write(saved(1, pin("a", 1)), [], DEVICES)

        ended = await orchestrator.apply(order(1, pin("a", 1)), lambda status: host.told.append(status.state))

        assert ended.state is ApplyState.FAILED
        assert ended.message == (
            f"a did not come up: docker did not end within {limit_s} s and was killed. "
            f"Going back failed too: a did not come up: docker did not end within {limit_s} s and was killed."
        )
        if len(calls(host.docker)) == 2:
            break
    assert ApplyState.ROLLING_BACK in host.told
    forward, back = calls(host.docker)
    assert any("gpu-override" in word for word in forward)
    assert not any("gpu-override" in word for word in back), "there was none before"


async def test_two_that_change_places_are_stopped_and_started_in_turn(host):
    install(host.bin, host.answers(container("a", 1, given=["1"]), container("b", 0, given=["0"])))
    orchestrator = host.orchestrator()
    after = (pin("a", 1), pin("b", 0))
    orchestrator.write(saved(1, *after), [], DEVICES)

    ended = await orchestrator.apply(order(1, *after, before=(pin("a", 0), pin("b", 1))), lambda _: None)

    assert ended.state is ApplyState.SUCCEEDED, ended
    done = ["up " + call[-1] if "up" in call else " ".join(call[-2:]) for call in calls(host.docker)]
    assert done == ["stop a", "up b", "up a"]


async def test_what_the_machine_refuses_half_way_is_rolled_back(host, monkeypatch):
    """Too many open files, say, between two services: an outcome of the one, not the end of the apply."""
    install(host.bin, host.answers(container("a", 1, given=["1"])))
    orchestrator = host.orchestrator()
    orchestrator.write(saved(1, pin("a", 0)), [], DEVICES)
    orchestrator.write(saved(2, pin("a", 1)), [], DEVICES)
    in_use, asked = GeneratedFiles.in_use, []

    def refused_at_first(files: GeneratedFiles) -> tuple[Path, ...]:
        asked.append(files)
        if len(asked) == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return in_use(files)

    monkeypatch.setattr(GeneratedFiles, "in_use", refused_at_first)
    ended = await orchestrator.apply(
        order(2, pin("a", 1), before=(pin("a", 0),), restore_number=1), lambda _: None
    )
    assert "a did not come up: system error: [Errno 24] Too many open files." in ended.message
    assert ended.finished_at is not None
    assert len(asked) == 2, "it was not put back"


async def test_one_that_was_stopped_to_make_room_is_not_forgotten(host):
    install(host.bin, host.answers(up={"err": "Error: no room\n", "rc": 1}))
    orchestrator = host.orchestrator()
    after = (pin("a", 1), pin("b", 0))
    orchestrator.write(saved(1, *after), [], DEVICES)

    ended = await orchestrator.apply(
        order(1, *after, before=(pin("a", 0), pin("b", 1)), on_failure=OnFailure.KEEP), lambda _: None
    )

    assert "b did not come up: Error: no room" in ended.message
    assert "a did not come up: it was stopped to free memory, and not started again" in ended.message


async def test_what_cannot_begin_touches_nothing(host):
    orchestrator = host.orchestrator()
    orchestrator.write(saved(1, pin("a", 1)), [], DEVICES)
    with pytest.raises(ComposeFileError, match="no service ghost"):
        await orchestrator.apply(order(1, pin("ghost", 1)), lambda _: None)
    (host.folder / "config" / "docker-compose.gpu-override.yml").write_text("mine\n")
    with pytest.raises(GeneratedFileEdited):
        await orchestrator.apply(order(2, pin("a", 1)), lambda _: None)
    host.docker.unlink()
    with pytest.raises(ContainerEngineMissing):
        await orchestrator.apply(order(1, pin("a", 1)), lambda _: None)
    host.file.unlink()
    with pytest.raises(ComposeFileError):
        await orchestrator.apply(order(1, pin("a", 1)), lambda _: None)
    assert calls(host.docker) == []
    assert not (host.folder / "state").exists()


async def test_saving_needs_no_container_engine(host):
    host.docker.unlink()
    orchestrator = host.orchestrator()
    orchestrator.write(saved(1, pin("a", 1)), [], DEVICES)

    assert orchestrator.compose_services() == ("a", "b")
    assert orchestrator.edited() == ()
    with pytest.raises(ContainerEngineMissing):
        await orchestrator.containers()


async def test_containers_are_told_of_every_service(host):
    install(host.bin, host.answers(container("a", 1, given=["1"])))
    assert await host.orchestrator().containers() == (
        ContainerState("a", "a0", running=True, assignment=pin("a", 1)),
        ContainerState("b"),
    )
