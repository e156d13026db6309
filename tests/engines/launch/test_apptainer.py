"""Apptainer is told the right things, by a stand-in that runs what comes after the image."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.errors import EngineLoadFailed
from cotenant.engines.launch.apptainer import ApptainerLauncher, command_line
from cotenant.engines.launch.container import RunAs
from cotenant.engines.launch.plan import LaunchPlan
from tests.support.containers.engine_images import launched
from tests.support.engines.orders import gpu
from tests.support.waiting import alive, wait_until

ORDINARY = RunAs(1000, 1000, daemon_is_root=False)
STAND_IN = """#!/bin/sh
for each in "$@"; do shift; case "$each" in *.sif) break;; esac; done
CUDA_VISIBLE_DEVICES=$APPTAINERENV_CUDA_VISIBLE_DEVICES "$@" &
trap '' TERM
wait $!; wait $!
"""
DAEMON = """
import asyncio, sys
from pathlib import Path
from tests.engines.launch.test_apptainer import ORDINARY, launcher, sleeping
from tests.support.containers.engine_images import launched

async def main(folder):
    engine = await launched(launcher(folder), sleeping(folder), folder / "log")
    await engine.wait()

asyncio.run(main(Path(sys.argv[1])))
"""


def launcher(folder: Path) -> ApptainerLauncher:
    return ApptainerLauncher(str(folder / "apptainer"), str(folder / "llama.sif"), user=ORDINARY)


def sleeping(folder: Path) -> LaunchPlan:
    said = f'echo "$$ $CUDA_VISIBLE_DEVICES" > {folder}/part'
    script = f"{said}; mv {folder}/part {folder}/told; exec sleep 60"
    return LaunchPlan("tiny", ("sh", "-c", script), 1, (gpu(0), gpu(1)))


def told(folder: Path) -> tuple[int, str]:
    wait_until((folder / "told").exists)
    pid, cards = (folder / "told").read_text().split()
    return int(pid), cards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "apptainer").write_text(STAND_IN)
    (tmp_path / "apptainer").chmod(0o755)
    (tmp_path / "llama.sif").touch()
    return tmp_path


def test_it_is_told_to_bind_files_read_only_and_to_show_the_cards_only() -> None:
    plan = LaunchPlan("tiny", ("vllm", "serve"), 1, (gpu(0), gpu(1)), {"A": "b,c"}, (Path("/m/a.gguf"),))
    argv, variables = command_line(plan, "/usr/bin/apptainer", "/i/vllm.sif")
    assert argv == [
        "/usr/bin/apptainer", "exec", "--cleanenv", "--no-home", "--pwd", "/tmp", "--nv",
        "--bind", "/m/a.gguf:/m/a.gguf:ro", "/i/vllm.sif", "vllm", "serve",
    ]  # fmt: skip
    assert variables["APPTAINERENV_A"] == "b,c"
    assert variables["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == "GPU-00000000-0000,GPU-00000001-0000"
    argv, variables = command_line(replace(plan, devices=()), "/usr/bin/singularity", "/i/vllm.sif")
    assert "--nv" not in argv
    assert variables["SINGULARITYENV_CUDA_VISIBLE_DEVICES"] == "-1"


def test_under_mps_the_pipes_are_bound_to_be_written() -> None:
    plan = LaunchPlan("tiny", ("x",), 1, (gpu(0),), {"CUDA_MPS_PIPE_DIRECTORY": "/state/pipe"})
    assert "/state/pipe:/state/pipe" in command_line(plan, "apptainer", "/i.sif")[0]


def test_a_path_that_cannot_be_bound_is_refused() -> None:
    plan = LaunchPlan("tiny", ("x",), 1, reads=(Path("/m/a:b.gguf"),))
    with pytest.raises(EngineLoadFailed, match="colon"):
        command_line(plan, "apptainer", "/i.sif")


async def test_root_and_an_image_that_is_not_there_are_refused(folder: Path) -> None:
    root = RunAs(65534, 65534, daemon_is_root=True)
    image = str(folder / "llama.sif")
    with pytest.raises(EngineLoadFailed, match="as root"):
        await launched(ApptainerLauncher("x", image, user=root), sleeping(folder), folder / "log")
    with pytest.raises(EngineLoadFailed, match="no image"):
        await launched(
            ApptainerLauncher("x", f"{image}.sif", user=ORDINARY), sleeping(folder), folder / "log"
        )


async def test_the_engine_is_in_the_group_of_its_process_and_stopped_with_all_above_it(
    folder: Path,
) -> None:
    engine = await launched(launcher(folder), sleeping(folder), folder / "log")
    pid, cards = await asyncio.to_thread(told, folder)
    assert os.getpgid(pid) == engine.pid
    assert cards == "GPU-00000000-0000,GPU-00000001-0000"
    assert await engine.stop(5)
    assert not alive(pid)


def test_a_killed_daemon_takes_the_group_along(folder: Path) -> None:
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(folder)], cwd=Path(__file__).parents[3], stdin=subprocess.DEVNULL
    )
    pid, _ = told(folder)
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.wait()
    wait_until(lambda: not alive(pid))
