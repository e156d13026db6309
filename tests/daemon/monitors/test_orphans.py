"""When containers that a killed daemon left are looked for: once a model may run in one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cotenant.clock import ManualClock
from cotenant.config.configuration import Configuration
from cotenant.config.watch import Change
from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.monitors.orphans import OrphanCleaner
from cotenant.domain.launching import LauncherKind, LaunchOptions
from tests.daemon.monitors.test_watchers import Posted, entry
from tests.support.waiting import until

ON_HOST = entry("plain")
IN_IMAGE = entry("boxed", launch=LaunchOptions(image="images.example/engine:1"))
IN_DOCKER = entry("other", launch=LaunchOptions(LauncherKind.DOCKER, "images.example/engine:1"))


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a podman and a docker on the PATH that write down what they are asked; return that file."""
    for name in ("podman", "docker"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $1" >> {tmp_path}/asked\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "asked").touch()
    return tmp_path / "asked"


@contextlib.asynccontextmanager
async def served(*configurations: Configuration) -> AsyncIterator[ActiveConfiguration]:
    """Serve the first; each reload takes the next."""
    rest = iter(configurations)
    being_served = ActiveConfiguration(next(rest), lambda _: next(rest), Posted(), ManualClock())  # type: ignore[arg-type]
    leftovers = OrphanCleaner(being_served)
    being_served.listeners.append(leftovers.served_changed)
    clearing = asyncio.create_task(leftovers.run())
    yield being_served
    clearing.cancel()


async def test_at_the_start_those_of_the_container_engine_in_use_are_looked_for(asked: Path) -> None:
    async with served(Configuration(models=(ON_HOST, IN_IMAGE))):
        await until(lambda: asked.read_text() == "podman ps\n")


async def test_a_reload_that_brings_the_first_image_looks_for_them_and_a_later_one_does_not(
    asked: Path,
) -> None:
    plain, boxed = Configuration(models=(ON_HOST,)), Configuration(models=(ON_HOST, IN_IMAGE))
    async with served(plain, boxed, plain, Configuration(models=(IN_IMAGE, IN_DOCKER))) as being_served:
        await being_served.reload(Change())
        await until(lambda: asked.read_text() == "podman ps\n")
        await being_served.reload(Change())
        await being_served.reload(Change())
        await until(lambda: asked.read_text() == "podman ps\ndocker ps\n")
