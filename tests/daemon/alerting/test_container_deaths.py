"""Following a container engine that is a real child process and speaks as podman does."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from cotenant.clock import ManualClock
from cotenant.config.configuration import AlertSettings
from cotenant.daemon.alerting.alerts import Alerts
from cotenant.daemon.alerting.container_deaths import ContainerWatch
from cotenant.domain.alerts import AlertKind
from tests.services.compose.test_container_events import podman
from tests.support.waiting import alive


@pytest.fixture(autouse=True)
def _only_our_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def stand_in(folder: Path, *lines: str, oom: bool = False) -> str:
    program = folder / "podman"
    # No compose command: the engine is found on the PATH.
    return _written(program, folder, lines, oom=oom, compose="exit 1")


def _written(program: Path, folder: Path, lines: Sequence[str], *, oom: bool, compose: str) -> str:
    said = "\n".join(lines)
    program.write_text(
        "#!/bin/sh\n"
        f'case "$1" in compose|version) {compose};; esac\n'
        f'[ "$1" = container ] && {{ echo {"true" if oom else "false"}; exit; }}\n'
        f'echo "$$" > {folder}/pid\n'
        f"/bin/cat <<'EOF'\n{said}\nEOF\nexec /bin/sleep 60\n"
    )
    program.chmod(0o755)
    return str(program)


async def watched(alerts: Alerts, kind: AlertKind) -> list[str]:
    feed = alerts.follow()
    watching = asyncio.create_task(ContainerWatch(alerts).run())
    try:
        async with asyncio.timeout(60):
            async for alert in feed:
                if alert.kind is kind:
                    return [alert.subject, alert.text]
    finally:
        watching.cancel()
        await asyncio.wait([watching])
    raise AssertionError("the feed ended")


async def test_a_container_that_dies_again_and_again_is_a_loop_and_the_child_ends_with_us(
    tmp_path: Path,
) -> None:
    alerts = Alerts(AlertSettings(), ManualClock())
    stand_in(tmp_path, *[podman("died", 1), "rubbish", "x" * 100_000] * 3)

    subject, _ = await watched(alerts, AlertKind.RESTART_LOOP)

    assert subject == "ai-llm"
    assert not alive(int((tmp_path / "pid").read_text()))


async def test_a_kill_is_looked_into_before_it_counts_as_out_of_memory(tmp_path: Path) -> None:
    alerts = Alerts(AlertSettings(), ManualClock())
    stand_in(tmp_path, podman("died", 137), oom=True)

    _, text = await watched(alerts, AlertKind.OUT_OF_MEMORY)

    assert text == "ai-llm was killed by the kernel: it was out of memory"


async def test_a_plain_kill_is_not_out_of_memory(tmp_path: Path) -> None:
    alerts = Alerts(AlertSettings(), ManualClock())
    stand_in(tmp_path, *[podman("died", 137)] * 3)

    await watched(alerts, AlertKind.RESTART_LOOP)

    assert alerts.totals()[AlertKind.OUT_OF_MEMORY] == 0


async def test_the_engine_that_runs_the_services_is_followed_and_no_other(tmp_path: Path) -> None:
    """podman may be installed beside it, and know nothing of them."""
    alerts = Alerts(AlertSettings(), ManualClock())
    stand_in(tmp_path)
    docker = [podman("died", 1)] * 3
    _written(tmp_path / "docker", tmp_path, docker, oom=False, compose="echo 2; exit 0")

    subject, _ = await watched(alerts, AlertKind.RESTART_LOOP)

    assert subject == "ai-llm"


async def test_without_a_container_engine_there_is_nothing_to_follow() -> None:
    watch = ContainerWatch(Alerts(AlertSettings(), ManualClock()))

    await asyncio.wait_for(watch.run(), 60)
