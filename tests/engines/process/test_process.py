import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import uvloop

from cotenant.engines.process.process import ChildProcess, group_lives, guarded, scrubbed
from tests.support.waiting import ends, has_ended, wait_until

STUBBORN = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1] + str(os.getpid()), "w").close()
while True:
    signal.pause()
"""


def python(code: str, *argv: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", textwrap.dedent(code), *argv]


def start(command: list[str]) -> ChildProcess:
    with open(os.devnull, "wb") as nowhere:
        return ChildProcess.start(command, env={}, output_fd=nowhere.fileno())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_an_end_is_noticed_at_once(run: object) -> None:
    async def scenario() -> int:
        child = start(python("import sys; sys.exit(7)"))
        async with asyncio.timeout(60):
            return await child.wait()

    assert run(scenario()) == 7  # type: ignore[operator]


def test_a_polite_child_ends_by_sigterm() -> None:
    async def scenario() -> tuple[bool, int | None]:
        child = start(["/bin/sleep", "600"])
        return await child.stop(60), child.returncode

    assert asyncio.run(scenario()) == (True, -15)


def test_a_stubborn_family_is_killed_with_its_grandchild(tmp_path: Path) -> None:
    async def scenario() -> int | None:
        child = start(python(STUBBORN, f"{tmp_path}/"))
        await asyncio.to_thread(wait_until, lambda: len(os.listdir(tmp_path)) == 2)
        (grandchild,) = {int(name) for name in os.listdir(tmp_path)} - {child.pid}
        pidfd = os.pidfd_open(grandchild)
        assert await child.stop(0.05)
        assert has_ended(pidfd)
        assert not group_lives(child.pid)
        return child.returncode

    assert asyncio.run(scenario()) == -9


def test_a_child_that_dies_takes_its_family_along(tmp_path: Path) -> None:
    orphaning = STUBBORN.replace("while True:", "while os.getpid() != os.getpgrp():") + "\nsys.exit(3)"

    async def scenario() -> None:
        child = start(python(orphaning, f"{tmp_path}/"))
        assert await child.wait() == 3
        await asyncio.to_thread(wait_until, lambda: not group_lives(child.pid))

    asyncio.run(scenario())


def test_stopping_twice_and_after_the_end_is_harmless() -> None:
    async def scenario() -> None:
        child = start(["/bin/sleep", "600"])
        assert await asyncio.gather(child.stop(60), child.stop(60)) == [True, True]
        assert await child.stop(60)

    asyncio.run(scenario())


def test_a_guarded_program_dies_with_its_parent(tmp_path: Path) -> None:
    parent_code = f"""
        import subprocess, sys, time
        sys.path.insert(0, {str(Path(__file__).resolve().parents[3] / "src")!r})
        from cotenant.engines.process.process import guarded
        child = subprocess.Popen(guarded(["/bin/sleep", "600"]), start_new_session=True)
        while open(f"/proc/{{child.pid}}/comm").read() != "sleep\\n":
            time.sleep(0.01)
        print(child.pid, flush=True)
        time.sleep(600)
    """
    with subprocess.Popen(python(parent_code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        assert ends(pidfd)


def test_a_guarded_program_of_a_dead_parent_does_not_start(tmp_path: Path) -> None:
    command = guarded(["/bin/touch", str(tmp_path / "ran")])
    command[4] = "1" if os.getpid() != 1 else "2"
    assert subprocess.run(command, check=False).returncode == 1
    assert not (tmp_path / "ran").exists()


def test_a_guarded_program_that_is_not_there_says_so() -> None:
    done = subprocess.run(guarded(["/nonexistent"]), capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert done.stderr == "E /nonexistent: cannot be started: No such file or directory\n"


def test_no_secret_of_ours_reaches_an_engine() -> None:
    secret = {
        "HF_TOKEN": "a",
        "OPENAI_API_KEY": "b",
        "AWS_SECRET_ACCESS_KEY": "c",
        "PGPASSWORD": "d",
        "DATABASE_URL": "postgresql://me:pw@db/x",
        "SSH_AUTH_SOCK": "e",
        "LLAMA_ARG_HOST": "0.0.0.0",
        "PLAIN": "of another model",
    }
    kept = {
        "PATH": "/bin",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HOME": "/hub",
        "https_proxy": "http://me:pw@proxy:3128",
        "CUDA_HOME": "/cuda",
        "KEYBOARD": "de",
        "ADDRESS": "http://host/a:b@c",
    }
    assert scrubbed({**secret, **kept}, {"of another model"}) == kept
