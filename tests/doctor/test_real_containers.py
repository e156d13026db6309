"""The doctor's looks into containers, with a real podman and stand-in cards."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.config.configuration import Configuration
from cotenant.doctor import containers
from cotenant.doctor.findings import Level
from cotenant.doctor.host_context import HostContext
from cotenant.programs.run import Finished
from cotenant.services.model import Service, ServicesSettings
from tests.doctor.support import machine, only
from tests.support.containers.container_bed import IDLE, IMAGE, ContainerBed, container_bed
from tests.support.gpus.fake_nvml import PaperCard

pytestmark = pytest.mark.slow

LABELS = "com.docker.compose"


@pytest.fixture
def bed() -> ContainerBed:
    found = container_bed()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def host(bed: ContainerBed, tmp_path: Path) -> HostContext:
    def run(argv: Sequence[str], within_s: float) -> Finished:
        done = subprocess.run(
            argv, env={**os.environ, **bed.environment}, capture_output=True, text=True, timeout=within_s
        )
        return Finished(done.returncode, done.stdout + done.stderr)

    return replace(
        machine(tmp_path, PaperCard("GPU-a"), PaperCard("GPU-b"), containers=True),
        root=Path("/"),
        run=run,
        find=lambda name: "/usr/bin/podman" if name == "podman" else None,
    )


@pytest.fixture
def project(bed: ContainerBed) -> Iterator[tuple[str, ...]]:
    names = ("doctor-sees", "doctor-blind")
    for name, handed in zip(names, (["--device", "nvidia.com/gpu=1"], []), strict=True):
        labels = ("--label", f"{LABELS}.project=doctor", "--label", f"{LABELS}.service={name}")
        bed.podman("run", "-d", "--name", name, *labels, *handed, IMAGE, *IDLE)
    yield names
    bed.podman("rm", "-f", "-t", "0", *names)


def test_podman_and_its_specification_are_well(host: HostContext) -> None:
    assert only(containers.podman(host), Level.OK).seen.startswith("podman ")
    assert "names every card" in only(containers.cdi(host), Level.OK).seen


def test_a_container_is_run_and_sees_both_cards(host: HostContext) -> None:
    found = only(containers.trial(host), Level.OK)

    assert found.seen == "a container of podman sees /dev/nvidia0, /dev/nvidia1"


def test_a_card_that_no_specification_names_keeps_containers_from_starting(
    host: HostContext, tmp_path: Path
) -> None:
    three = machine(tmp_path, PaperCard("GPU-a"), PaperCard("GPU-b"), PaperCard("GPU-c"))

    found = only(containers.trial(replace(host, inventory=three.inventory)), Level.PROBLEM)
    assert "nvidia.com/gpu=2" in found.seen


def test_each_service_is_asked_in_its_container(
    host: HostContext, project: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "compose.yml"
    file.write_text("name: doctor\nservices: {}\n")
    items = tuple(Service(name) for name in (*project, "doctor-stopped"))
    told = ServicesSettings(compose_files=(file,), output_dir=Path("config"), items=items)
    found = list(containers.services(replace(host, configuration=Configuration(services=told))))

    assert [each.level for each in found] == [Level.OK, Level.PROBLEM, Level.WARNING]
    assert found[0].seen == "the service doctor-sees sees /dev/nvidia1"
    assert found[1].seen == "the service doctor-blind runs and sees no GPU"
