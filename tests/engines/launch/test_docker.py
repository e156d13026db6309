"""Containers of docker: what it is told, and its real command line over podman's service where both are."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.devices import Device
from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.exit_causes import Cause
from cotenant.domain.launching import LauncherKind
from cotenant.engines.launch import container_supervisor
from cotenant.engines.launch.container import ContainerLauncher, RunAs
from cotenant.engines.launch.container_process import ContainerJob
from cotenant.engines.launch.plan import LaunchPlan
from cotenant.engines.process.ports import ReservedPort
from tests.support.containers.container_bed import ContainerBed, container_bed
from tests.support.containers.engine_images import launched, shell_image, shell_plan
from tests.support.engines.orders import HOST, gpu
from tests.support.waiting import wait_until

ORDINARY = RunAs(1000, 1001, daemon_is_root=False)
ROOT = RunAs(65534, 65534, daemon_is_root=True)
IMAGE = "images.example/llama:server"


def job(plan: LaunchPlan, kind: LauncherKind = LauncherKind.DOCKER, user: RunAs = ORDINARY) -> ContainerJob:
    return ContainerLauncher(kind, f"/usr/bin/{kind}", IMAGE, user=user).job(plan)


def plan(*devices: Device, **env: str) -> LaunchPlan:
    return LaunchPlan(
        "org/tiny model", ("llama-server", "--port", "1"), 1, devices, env, (Path("/m/a.gguf"),)
    )


def test_docker_gets_the_cards_by_uuid_in_one_quoted_list() -> None:
    told = job(plan(gpu(0), HOST, gpu(1), gpu(2, described=True)))
    assert '--gpus="device=GPU-00000000-0000,GPU-00000001-0000"' in told.create
    assert told.env["CUDA_VISIBLE_DEVICES"] == "GPU-00000000-0000,GPU-00000001-0000"
    assert "NVIDIA_VISIBLE_DEVICES" not in told.env


def test_podman_gets_the_cards_by_cdi_names() -> None:
    told = job(plan(gpu(0), gpu(1)), LauncherKind.PODMAN)
    devices = [word for word in told.create if word.startswith("--device=")]
    assert devices == [f"--device=nvidia.com/gpu=GPU-{number:08d}-0000" for number in range(2)]


def test_no_value_of_a_variable_is_in_the_list_of_processes(tmp_path: Path) -> None:
    program = tmp_path / "engine"
    program.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/argv; printf %s "$PEM" > {tmp_path}/pem\n')
    program.chmod(0o755)
    launcher = ContainerLauncher(LauncherKind.DOCKER, str(program), IMAGE, user=ORDINARY)
    told = launcher.job(plan(HOST, TOKEN="secret", PEM="secret 1\nsecret 2"))
    assert (
        container_supervisor._create({"engine": told.engine, "create": told.create, "env": told.env}) is None
    )
    argv = (tmp_path / "argv").read_text()
    assert "--env PEM " in argv
    assert "secret" not in argv
    assert (tmp_path / "pem").read_text() == "secret 1\nsecret 2"


def test_an_engine_without_cards_sees_none_whatever_its_image_asks_for() -> None:
    told = job(plan(HOST))
    assert not [word for word in told.create if word.startswith(("--gpus", "--device"))]
    assert told.env["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert told.env["CUDA_VISIBLE_DEVICES"] == "-1"


@pytest.mark.parametrize("kind", [LauncherKind.PODMAN, LauncherKind.DOCKER])
@pytest.mark.parametrize("user", [ORDINARY, ROOT])
def test_no_container_is_privileged_or_roots_or_pulled(
    kind: LauncherKind, user: RunAs, tmp_path: Path
) -> None:
    path = tmp_path / "a.gguf"
    path.touch(mode=0o644)
    told = job(replace(plan(gpu(0)), reads=(path,)), kind, user).create
    assert {"--cap-drop=all", "--security-opt=no-new-privileges", "--pull=never"} <= set(told)
    assert f"--user={user.uid}:{user.gid}" in told
    assert user.uid != 0
    assert not [word for word in told if "privileged" in word and not word.endswith("no-new-privileges")]
    assert ("--userns=keep-id" in told) == (kind is LauncherKind.PODMAN and user is ORDINARY)


def test_the_image_and_its_arguments_come_last_and_the_program_is_the_images() -> None:
    told = job(plan())
    assert told.create[-5:] == ("--entrypoint", "llama-server", IMAGE, "--port", "1")
    assert re.fullmatch(r"cotenant-org-tiny-model-[0-9a-f]{8}", told.name)
    assert told.name != job(plan()).name


def test_an_engine_under_mps_has_the_pipes_and_the_hosts_ipc() -> None:
    told = job(plan(gpu(0), CUDA_MPS_PIPE_DIRECTORY="/state/mps/a/pipe")).create
    assert "--ipc=host" in told
    assert "--mount=type=bind,source=/state/mps/a/pipe,target=/state/mps/a/pipe" in told
    assert "--ipc=host" not in job(plan(gpu(0))).create


def test_roots_mps_daemon_is_no_use_to_a_container_and_that_is_said() -> None:
    shared = replace(plan(gpu(0), CUDA_MPS_PIPE_DIRECTORY="/p"), reads=())
    with pytest.raises(EngineLoadFailed, match="root's MPS daemon") as told:
        job(shared, user=ROOT)
    assert "ordinary user" in told.value.hint


def test_all_parts_of_a_split_file_and_what_a_folder_links_to_are_there_to_read(tmp_path: Path) -> None:
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "n-00002-of-00002.gguf"):
        (tmp_path / name).touch()
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (tmp_path / "blob").touch()
    (snapshot / "model.safetensors").symlink_to("../../blob")
    told = job(replace(plan(), reads=(tmp_path / "m-00001-of-00002.gguf", snapshot))).create
    mounts = [word for word in told if word.startswith("--mount=")]
    paths = [tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2)] + [snapshot, tmp_path / "blob"]
    assert mounts == [f"--mount=type=bind,source={path},target={path},readonly" for path in paths]


def test_a_file_that_the_containers_user_may_not_read_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.touch()
    path.chmod(0o600)
    with pytest.raises(EngineLoadFailed, match="user 65534, which may not read") as told:
        job(replace(plan(), reads=(path,)), user=ROOT)
    assert f"chmod o+r {path}" in told.value.hint


def test_a_name_with_a_comma_is_refused() -> None:
    with pytest.raises(EngineLoadFailed, match="a comma"):
        job(replace(plan(), reads=(Path("/m/a,b.gguf"),)))


async def test_a_container_that_outgrew_its_memory_is_said_to_be_killed(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        "#!/bin/sh\n"
        f'echo "$*" >> {tmp_path}/calls\n'
        'case "$1" in container) echo \'{"Status":"exited","Running":false,"StartedAt":"2026",'
        '"ExitCode":1,"OOMKilled":true,"Pid":0}\';; start) exit 1;; esac\n'
    )
    docker.chmod(0o755)
    launcher = ContainerLauncher(LauncherKind.DOCKER, str(docker), IMAGE, user=ORDINARY)
    engine = await launched(launcher, replace(plan(), reads=()), tmp_path / "log")
    assert await engine.wait() == -signal.SIGKILL
    assert "OOMKilled" in (tmp_path / "log").read_text()
    assert "rm --force cotenant-org-tiny-model-" in (tmp_path / "calls").read_text()


async def test_a_container_that_cannot_be_created_says_why_by_its_cause(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        "#!/bin/sh\n"
        'test "$1" = create || exit 0\n'
        'echo \'docker: Error response from daemon: could not select device driver "" with '
        "capabilities: [[gpu]].' >&2; exit 125\n"
    )
    docker.chmod(0o755)
    launcher = ContainerLauncher(LauncherKind.DOCKER, str(docker), IMAGE, user=ORDINARY)
    with pytest.raises(EngineLoadFailed, match="could not select device driver") as told:
        await launched(launcher, replace(plan(), reads=()), tmp_path / "log")
    assert told.value.cause is Cause.DEVICE_MISSING
    assert "nvidia-ctk runtime configure --runtime=docker" in told.value.hint


async def test_a_docker_that_does_not_answer_is_told_as_that(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        "#!/bin/sh\necho 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock.' >&2; exit 1\n"
    )
    docker.chmod(0o755)
    launcher = ContainerLauncher(LauncherKind.DOCKER, str(docker), IMAGE, user=ORDINARY)
    with pytest.raises(EngineLoadFailed, match="Cannot connect to the Docker daemon") as told:
        await launched(launcher, replace(plan(), reads=()), tmp_path / "log")
    assert "systemctl start docker" in told.value.hint
    assert "pull" not in told.value.hint


@pytest.fixture
def docker_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ContainerBed]:
    bed = container_bed()
    if isinstance(bed, str):
        pytest.skip(bed)
    if shutil.which("docker") is None:
        pytest.skip("no docker command")
    for name, value in bed.environment.items():
        monkeypatch.setenv(name, value)
    shell_image(bed)
    socket = tmp_path / "podman.sock"
    address = f"unix://{socket}"
    service = subprocess.Popen(
        ["podman", "system", "service", "--time", "0", address], env={**os.environ, **bed.environment}
    )
    try:
        wait_until(socket.exists)
        monkeypatch.setenv("DOCKER_HOST", address)
        yield bed
    finally:
        service.kill()
        service.wait()


@pytest.mark.slow
async def test_the_real_docker_command_takes_what_it_is_told(
    docker_host: ContainerBed, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    model.write_text("weights\n")
    launcher = ContainerLauncher(LauncherKind.DOCKER, "docker", shell_image(docker_host))
    with ReservedPort() as port:
        engine = await launched(launcher, shell_plan(model, port.number, STUBBORN="1"), tmp_path / "log")
        assert await engine.stop(0.1)
    assert engine.returncode == -signal.SIGKILL
    assert docker_host.podman("ps", "-aq", "--filter", "label=cotenant.engine") == ""
    assert "begins as 65534" in (tmp_path / "log").read_text()
