"""Following a container engine that is a real child process and speaks as podman does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cotenant.clock import ManualClock
from cotenant.config.configuration import AlertSettings
from cotenant.daemon.alerts import Alerts
from cotenant.daemon.container_watch import ContainerWatch
from cotenant.domain.alerts import AlertKind
from tests.containers.test_events import podman
from tests.support.serving import alive


def stand_in(folder: Path, *lines: str, oom: bool = False) -> str:
    program = folder / "podman"
    said = "\n".join(lines)
    program.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = container ] && {{ echo {"true" if oom else "false"}; exit; }}\n'
        f'echo "$$" > {folder}/pid\n'
        f"cat <<'EOF'\n{said}\nEOF\nexec sleep 60\n"
    )
    program.chmod(0o755)
    return str(program)


async def watched(program: str, alerts: Alerts, kind: AlertKind) -> list[str]:
    feed = alerts.follow()
    watching = asyncio.create_task(ContainerWatch(alerts, program).run())
    try:
        async with asyncio.timeout(20):
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
    program = stand_in(tmp_path, *[podman("died", 1), "rubbish", "x" * 100_000] * 3)

    subject, _ = await watched(program, alerts, AlertKind.RESTART_LOOP)

    assert subject == "ai-llm"
    assert not alive(int((tmp_path / "pid").read_text()))


async def test_a_kill_is_looked_into_before_it_counts_as_out_of_memory(tmp_path: Path) -> None:
    alerts = Alerts(AlertSettings(), ManualClock())
    program = stand_in(tmp_path, podman("died", 137), oom=True)

    _, text = await watched(program, alerts, AlertKind.OUT_OF_MEMORY)

    assert text == "ai-llm was killed by the kernel: it was out of memory"


async def test_a_plain_kill_is_not_out_of_memory(tmp_path: Path) -> None:
    alerts = Alerts(AlertSettings(), ManualClock())
    program = stand_in(tmp_path, *[podman("died", 137)] * 3)

    await watched(program, alerts, AlertKind.RESTART_LOOP)

    assert alerts.totals()[AlertKind.OUT_OF_MEMORY] == 0


async def test_without_a_container_engine_there_is_nothing_to_follow(monkeypatch: object) -> None:
    watch = ContainerWatch(Alerts(AlertSettings(), ManualClock()), "")
    watch._engine = None

    await asyncio.wait_for(watch.run(), 5)
