"""Engines in containers of a real podman, where one can be had."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.exit_causes import Cause
from cotenant.domain.launching import LauncherKind
from cotenant.domain.vendors import Vendor
from cotenant.engines.diagnosis.diagnosis import diagnose
from cotenant.engines.launch.container import OWNER_LABEL, ContainerLauncher
from cotenant.engines.launch.orphans import remove_orphaned_containers
from cotenant.engines.launch.plan import LaunchPlan
from cotenant.engines.process.owner import Owner
from cotenant.engines.process.ports import ReservedPort
from cotenant.http.client import probe
from tests.support.containers.container_bed import GPU_UUIDS, ContainerBed, container_bed
from tests.support.containers.engine_images import launched, shell_image, shell_plan
from tests.support.waiting import alive, wait_until

pytestmark = pytest.mark.slow

DAEMON = """
import asyncio, sys
from pathlib import Path
from cotenant.domain.launching import LauncherKind
from cotenant.engines.launch.container import ContainerLauncher
from tests.support.containers.engine_images import IMAGE, launched, shell_plan

async def main(folder, port):
    launcher = ContainerLauncher(LauncherKind.PODMAN, "podman", IMAGE)
    plan = shell_plan(folder / "model.gguf", port, STUBBORN="1")
    engine = await launched(launcher, plan, folder / "log")
    print(engine.pid, flush=True)
    await engine.wait()

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> ContainerBed:
    found = container_bed()
    if isinstance(found, str):
        pytest.skip(found)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    shell_image(found)
    return found


@pytest.fixture
def port() -> Iterator[int]:
    with ReservedPort() as reserved:
        reserved.let_go()  # busybox shares no port
        yield reserved.number


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_text("weights\n")
    path.chmod(0o666)
    return path


def podman(bed: ContainerBed, image: str = "") -> ContainerLauncher:
    return ContainerLauncher(LauncherKind.PODMAN, "podman", image or shell_image(bed))


async def page(port: int, path: str) -> str:
    async with asyncio.timeout(60):
        while True:
            answer = await probe(Endpoint("127.0.0.1", port), path, timeout_s=1)
            if answer is not None and answer.status == 200:
                return answer.body.decode()
            await asyncio.sleep(0.02)


def containers(bed: ContainerBed) -> list[str]:
    return bed.podman("ps", "-a", "--filter", "label=cotenant.engine", "--format", "{{.Names}}").split()


async def test_an_engine_has_its_card_alone_and_reads_its_model_but_cannot_write_it(
    bed: ContainerBed, port: int, model: Path, tmp_path: Path
) -> None:
    card = Device(DeviceId(GPU_UUIDS[1]), DeviceKind.GPU, "RTX A5500", index=1, vendor=Vendor.NVIDIA)
    plan = replace(shell_plan(model, port, GREETING="a b=c", PEM="one\ntwo"), devices=(card,))
    engine = await launched(podman(bed), plan, tmp_path / "log")
    try:
        assert await page(port, "/health") == "weights\n"
        assert "Read-only" in await page(port, "/written")
        seen = dict(line.partition("=")[::2] for line in (await page(port, "/env")).splitlines())
        assert {"PEM": "one", "two": ""}.items() <= seen.items(), "a value of two lines is whole"
        assert (seen["GREETING"], seen["CUDA_VISIBLE_DEVICES"]) == ("a b=c", GPU_UUIDS[1])
        devices = (await page(port, "/devices")).split()
        assert "nvidia1" in devices
        assert "nvidia0" not in devices
        rights = dict(line.split() for line in (await page(port, "/rights")).splitlines())
        assert {int(value, 16) for value in rights.values()} == {0}
        assert "httpd" in command_of(engine.pid)
        told = json.loads(bed.podman("inspect", containers(bed)[0]))[0]
        assert told["HostConfig"]["Privileged"] is False
        assert told["Config"]["Labels"]["cotenant.model"] == "tiny"
        assert Owner.parse(told["Config"]["Labels"][OWNER_LABEL]) == Owner.here()
    finally:
        assert await engine.stop(5)
    assert engine.returncode == 0
    assert containers(bed) == []
    assert "begins as 65534" in (tmp_path / "log").read_text()


async def test_a_stubborn_engine_is_killed_after_its_grace(
    bed: ContainerBed, port: int, model: Path, tmp_path: Path
) -> None:
    engine = await launched(podman(bed), shell_plan(model, port, STUBBORN="1"), tmp_path / "log")
    await page(port, "/written")
    pid = engine.pid
    assert await engine.stop(0.2)
    assert engine.returncode == -signal.SIGKILL
    assert not alive(pid)
    assert containers(bed) == []


async def test_an_engine_without_a_handler_ends_at_once_as_it_would_on_the_host(
    bed: ContainerBed, port: int, tmp_path: Path
) -> None:
    plan = LaunchPlan("tiny", ("sleep", "600"), port)
    engine = await launched(podman(bed), plan, tmp_path / "log")
    began = asyncio.get_running_loop().time()
    assert await engine.stop(30)
    assert asyncio.get_running_loop().time() - began < 15
    assert containers(bed) == []


async def test_an_engine_that_ends_leaves_its_words_its_status_and_nothing_else(
    bed: ContainerBed, port: int, model: Path, tmp_path: Path
) -> None:
    plan = shell_plan(model, port, SAYS="out of memory", EXITS="7")
    engine = await launched(podman(bed), plan, tmp_path / "log")
    assert await engine.wait() == 7
    assert "out of memory" in (tmp_path / "log").read_text()
    assert containers(bed) == []


async def test_an_engine_that_is_killed_says_by_which_signal(
    bed: ContainerBed, port: int, model: Path, tmp_path: Path
) -> None:
    engine = await launched(podman(bed), shell_plan(model, port), tmp_path / "log")
    os.kill(engine.pid, signal.SIGKILL)
    assert await engine.wait() == -signal.SIGKILL
    assert containers(bed) == []


async def test_an_image_that_is_not_there_is_told_and_not_pulled(
    bed: ContainerBed, port: int, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineLoadFailed, match="nowhere/none"):
        await launched(podman(bed, "localhost/nowhere/none:1"), shell_plan(model, port), tmp_path / "log")
    assert containers(bed) == []


async def test_a_card_that_podman_does_not_know_ends_the_start_with_its_name_in_the_log(
    bed: ContainerBed, port: int, model: Path, tmp_path: Path
) -> None:
    card = Device(DeviceId("GPU-unknown"), DeviceKind.GPU, "RTX", index=9, vendor=Vendor.NVIDIA)
    plan = replace(shell_plan(model, port), devices=(card,))
    # Some releases of podman look for it when a container is created, others when it is started.
    with contextlib.suppress(EngineLoadFailed):
        engine = await launched(podman(bed), plan, tmp_path / "log")
        assert await engine.wait() != 0
    found = diagnose(125, (tmp_path / "log").read_text())
    assert found.cause is Cause.DEVICE_MISSING
    assert "knows no GPU nvidia.com/gpu=GPU-unknown" in found.summary
    assert containers(bed) == []


async def test_a_start_that_is_given_up_leaves_nothing(
    bed: ContainerBed, port: int, model: Path, tmp_path: Path
) -> None:
    starting = asyncio.create_task(launched(podman(bed), shell_plan(model, port), tmp_path / "log"))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert containers(bed) == []


async def test_what_a_killed_keeper_kept_is_removed(
    bed: ContainerBed, port: int, model: Path, tmp_path: Path
) -> None:
    engine = await launched(podman(bed), shell_plan(model, port), tmp_path / "log")
    await page(port, "/health")
    os.kill(supervisor_of(os.getpid()), signal.SIGKILL)
    assert await engine.wait() == -signal.SIGKILL
    assert not alive(engine.pid)
    assert containers(bed) == []


def test_a_killed_daemon_leaves_no_engine_though_no_other_ever_starts(
    bed: ContainerBed, port: int, model: Path, tmp_path: Path
) -> None:
    daemon, engine = started_daemon(tmp_path, port)
    daemon.kill()
    daemon.wait()
    wait_until(lambda: not alive(engine))
    wait_until(lambda: containers(bed) == [])


def test_what_a_daemon_and_its_keeper_left_is_removed_at_the_next_start_and_no_other(
    bed: ContainerBed, port: int, model: Path, tmp_path: Path
) -> None:
    daemon, engine = started_daemon(tmp_path, port)
    bed.podman(
        "create", "--name", "theirs", "--label", "cotenant.engine=1", "--label", f"{OWNER_LABEL}=no owner",
        shell_image(bed), "sh",
    )  # fmt: skip
    try:
        supervisor = supervisor_of(daemon.pid)
        assert remove_orphaned_containers() == ()
        os.kill(supervisor, signal.SIGSTOP)
        daemon.kill()
        daemon.wait()
        os.kill(supervisor, signal.SIGKILL)
        assert alive(engine)
        (removed,) = remove_orphaned_containers()
        assert removed.startswith("cotenant-tiny-")
        assert not alive(engine)
        assert containers(bed) == ["theirs"]
    finally:
        daemon.kill()
        bed.podman("rm", "-f", "-t", "0", "theirs")


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def started_daemon(folder: Path, port: int) -> tuple[subprocess.Popen[str], int]:
    """Start a process that has an engine; return it and the engine's process."""
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(folder), str(port)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert daemon.stdout is not None
    with daemon.stdout:
        return daemon, int(daemon.stdout.readline())


def supervisor_of(pid: int) -> int:
    """Find the one child of a process that supervises a container."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (supervisor,) = [
        c for c in children if b"container_supervisor" in Path(f"/proc/{c}/cmdline").read_bytes()
    ]
    return int(supervisor)


async def test_a_container_ends_with_its_lease_though_nobody_stops_it(
    bed: ContainerBed, model: Path, port: int, tmp_path: Path
) -> None:
    lease = tmp_path / "lease"
    lease.write_bytes((1 << 62).to_bytes(8, "little"))
    plan = replace(shell_plan(model, port, STUBBORN="1"), lease=lease)
    engine = await launched(podman(bed), plan, tmp_path / "log")
    try:
        assert await page(port, "/health") == "weights\n"
        lease.write_bytes((1).to_bytes(8, "little"))
        async with asyncio.timeout(60):
            assert await engine.wait() == -signal.SIGKILL
    finally:
        await engine.stop(0)
    assert not alive(engine.pid)
