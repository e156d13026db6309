import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from cotenant.services.compose.runner import ComposeRunner
from tests.support.containers.fake_docker import install
from tests.support.waiting import until

pytestmark = pytest.mark.slow


def runner(folder: Path, timeout_s: float = 120.0) -> ComposeRunner:
    return ComposeRunner(folder, timeout_s)


def script(folder: Path, text: str) -> list[str]:
    path = folder / "script.sh"
    path.write_text(text)
    return ["/bin/sh", str(path)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


async def test_a_command_that_fails_tells_the_engines_line(tmp_path):
    argv = script(tmp_path, "echo making; echo 'Error: no such device' >&2; exit 125")
    assert await runner(tmp_path).run(argv, tmp_path) == "Error: no such device"
    assert await runner(tmp_path).run(script(tmp_path, "exit 0"), tmp_path) is None
    assert "cannot be started" in str(await runner(tmp_path).run(["/nowhere/compose"], tmp_path))


async def test_a_folder_that_cannot_be_used_is_a_complaint_and_not_a_fault(tmp_path):
    gone = tmp_path / "gone"
    assert await runner(gone).run(["true"], tmp_path) == (
        f"{gone / 'compose.lock'} cannot be used: No such file or directory"
    )
    assert await runner(tmp_path).run(["true"], gone) == f"{gone} cannot be used: No such file or directory"
    assert not await runner(gone).is_busy(0.0)


async def test_a_command_that_hangs_is_killed_with_all_it_started(tmp_path):
    program = install(tmp_path / "bin", {"up": {"hang": True}})

    for limit_s in (0.5, 5, 50):  # Within one of them both processes have begun, and said so.
        wrong = await runner(tmp_path, limit_s).run([str(program), "up"], tmp_path)
        assert wrong == f"docker did not end within {limit_s} s and was killed"
        pids = [int(path.name.split(".")[1]) for path in program.parent.glob("docker.*.pid")]
        if len(pids) >= 2:
            break
    assert len(pids) >= 2
    await until(lambda: not any(map(alive, pids)))


async def test_commands_run_one_after_the_other(tmp_path):
    argv = script(tmp_path, f"mkdir {tmp_path}/busy || exit 1; sleep 0.05; rmdir {tmp_path}/busy")
    one = runner(tmp_path)

    assert await asyncio.gather(*(one.run(argv, tmp_path) for _ in range(4))) == [None] * 4


async def test_a_command_goes_on_when_the_apply_is_cancelled(tmp_path):
    argv = script(tmp_path, f"touch {tmp_path}/began; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done")
    task = asyncio.create_task(runner(tmp_path).run(argv, tmp_path))
    await until((tmp_path / "began").exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await runner(tmp_path).is_busy(0.1)
    (tmp_path / "go").touch()
    assert not await runner(tmp_path).is_busy(60.0)


async def test_a_command_keeps_to_its_limit_when_the_daemon_was_killed(tmp_path):
    argv = script(tmp_path, f"echo $$ > {tmp_path}/pid; mv {tmp_path}/pid {tmp_path}/began; exec sleep 600")
    driver = f"""
import asyncio, sys
from pathlib import Path
from cotenant.services.compose.runner import ComposeRunner
asyncio.run(ComposeRunner(Path({str(tmp_path)!r}), 5).run({argv!r}, Path({str(tmp_path)!r})))
"""
    daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", driver)
    await until((tmp_path / "began").exists)
    os.kill(daemon.pid, signal.SIGKILL)
    await daemon.wait()
    pid = int((tmp_path / "began").read_text())

    assert not await runner(tmp_path).is_busy(60.0)
    await until(lambda: not alive(pid))
