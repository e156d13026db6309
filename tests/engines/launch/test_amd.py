"""AMD's cards in containers: which device files, by which groups; tried by a real podman."""

import os
import stat
from pathlib import Path

import pytest

from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.errors import EngineLacksDevice
from cotenant.domain.launching import CardStyle, LauncherKind
from cotenant.domain.vendors import Vendor
from cotenant.engines.launch import cards as launch_amd
from cotenant.engines.launch.apptainer import command_line
from cotenant.engines.launch.cards import amd_options
from cotenant.engines.launch.container import ContainerLauncher, RunAs, renumbered
from cotenant.engines.launch.plan import LaunchPlan
from tests.support.containers.container_bed import container_bed
from tests.support.containers.engine_images import shell_image

RENDER_GROUP = 993


def amd(index: int, name: str = "", render_node: int | None = 128) -> Device:
    return Device(
        DeviceId(f"GPU-{index:016x}"),
        DeviceKind.GPU,
        "MI210",
        index=index,
        vendor=Vendor.AMD,
        runtime_name=name or f"GPU-{index:016x}",
        render_node=render_node,
    )


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of /dev, whose files belong to this process's group."""
    monkeypatch.setattr(launch_amd, "DEVICES", tmp_path)
    (tmp_path / "dri").mkdir()
    for name in ("kfd", "dri/renderD128", "dri/renderD129"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o660)
    return tmp_path


def options(*cards: Device, rootless_podman: bool = False) -> list[str]:
    style = CardStyle.CDI if rootless_podman else CardStyle.GPUS
    return [*amd_options("tiny", cards, style, rootless=rootless_podman)]


def test_a_container_gets_the_compute_device_and_the_render_node_of_its_card_alone(devices: Path) -> None:
    assert options(amd(1, render_node=129)) == [
        f"--device={devices}/kfd:/dev/kfd",
        f"--device={devices}/dri/renderD129:/dev/dri/renderD129",
        f"--group-add={(devices / 'kfd').stat().st_gid}",
    ]


def test_groups_are_kept_where_none_can_be_added_and_left_out_where_everybody_may(devices: Path) -> None:
    assert options(amd(0), rootless_podman=True)[-1] == "--group-add=keep-groups"
    for name in ("kfd", "dri/renderD128"):
        (devices / name).chmod(0o666)
    assert not [word for word in options(amd(0)) if word.startswith("--group-add")]


def test_what_is_not_there_or_not_told_is_refused_by_name(devices: Path) -> None:
    (devices / "dri" / "renderD129").unlink()
    with pytest.raises(EngineLacksDevice, match="renderD129: No such file"):
        options(amd(1, render_node=129))
    with pytest.raises(EngineLacksDevice, match="does not report the render node of GPU 1 MI210"):
        options(amd(1, render_node=None))


def test_cards_without_a_uuid_are_numbered_anew_where_no_others_are() -> None:
    cards = [amd(3, "3"), amd(1, "1"), amd(2)]
    assert [card.runtime_name for card in renumbered(cards)] == ["2", "0", "GPU-0000000000000002"]


def test_a_job_for_amds_cards_asks_for_nothing_of_nvidias(devices: Path) -> None:
    plan = LaunchPlan("tiny", ("llama-server",), 1, (amd(2, "2"),))
    user = RunAs(1000, 1000, daemon_is_root=False)
    for kind in (LauncherKind.PODMAN, LauncherKind.DOCKER):
        job = ContainerLauncher(kind, kind, "images.example/llama:rocm", user=user).job(plan)
        assert f"--device={devices}/kfd:/dev/kfd" in job.create
        assert not [word for word in job.create if "nvidia" in word or word.startswith("--gpus")]
        assert (job.env["ROCR_VISIBLE_DEVICES"], job.env["HIP_VISIBLE_DEVICES"]) == ("0", "0")
        assert ("--group-add=keep-groups" in job.create) is (kind is LauncherKind.PODMAN)
    argv, variables = command_line(plan, "/usr/bin/apptainer", "/i/llama.sif")
    assert "--rocm" in argv
    assert "--nv" not in argv
    assert variables["APPTAINERENV_ROCR_VISIBLE_DEVICES"] == "2", "it hides cards by variables alone"


@pytest.mark.slow
def test_in_a_real_container_the_card_opens_by_its_group_and_no_other_is_there(devices: Path) -> None:
    bed = container_bed()
    if isinstance(bed, str):
        pytest.skip(bed)
    image = shell_image(bed)
    for name in ("kfd", "dri/renderD128", "dri/renderD129"):
        (devices / name).unlink()
        os.mknod(devices / name, stat.S_IFCHR | 0o660, os.makedev(1, 3))
        os.chown(devices / name, 0, RENDER_GROUP)
        (devices / name).chmod(0o660)
    given = options(amd(0))
    look = "cat /dev/kfd /dev/dri/renderD128 && echo opened; ls /dev/dri"
    walls = ["--cap-drop=all", "--security-opt=no-new-privileges", "--user=65534:65534", "--network=host"]
    told = bed.podman("run", "--rm", *walls, *given, image, "sh", "-c", look)
    assert told.split() == ["opened", "renderD128"]
    without = [word for word in given if not word.startswith("--group-add")]
    assert "opened" not in bed.podman("run", "--rm", *walls, *without, image, "sh", "-c", look)
