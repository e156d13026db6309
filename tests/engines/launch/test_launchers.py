from pathlib import Path

import pytest

from cotenant.domain.errors import EngineMissing
from cotenant.domain.launching import ON_HOST, LauncherKind, LaunchOptions
from cotenant.engines.launch import launchers
from cotenant.engines.launch.launchers import kind_of
from cotenant.engines.launch.plan import LaunchPlan
from tests.support.containers.engine_images import launched


def programs(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("image", "there", "chosen"),
    [
        ("vllm/vllm-openai:latest", ("podman", "docker"), LauncherKind.PODMAN),
        ("vllm/vllm-openai:latest", ("docker",), LauncherKind.DOCKER),
        ("/images/vllm.sif", ("podman",), LauncherKind.APPTAINER),
    ],
)
def test_an_image_is_run_by_what_suits_it_and_is_there(
    image: str, there: tuple[str, ...], chosen: LauncherKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path, *there))
    assert kind_of(LaunchOptions(image=image)) is chosen


def test_what_was_asked_for_is_not_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path, "podman"))
    assert kind_of(LaunchOptions(LauncherKind.DOCKER, "x")) is LauncherKind.DOCKER
    assert kind_of(ON_HOST) is LauncherKind.HOST


async def test_a_launcher_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for terms, said in (
        (LaunchOptions(LauncherKind.DOCKER, "x"), "no program docker"),
        (LaunchOptions(image="x.sif"), "no program apptainer or singularity"),
        (LaunchOptions(image="x"), "neither podman nor docker"),
    ):
        with pytest.raises(EngineMissing, match=said):
            await launched(launchers, LaunchPlan("tiny", ("x",), 1, launch=terms), tmp_path / "log")


async def test_without_an_image_an_engine_runs_on_the_host(tmp_path: Path) -> None:
    engine = await launched(launchers, LaunchPlan("tiny", ("sh", "-c", "exit 3"), 1), tmp_path / "log")
    assert await engine.wait() == 3
