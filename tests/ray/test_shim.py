"""The shim starts an agent where there is none, and says at once when one has ended; without Ray."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from cotenant import __version__
from cotenant.domain.nodes import AgentGone
from cotenant.nodes.messages import Hello, HelloAnswer, Poll
from cotenant.nodes.paths import AgentFolder
from cotenant.nodes.protocol import Json, from_json, to_json
from cotenant.ray.shim import Shim
from tests.support.engines.orders import fake_server
from tests.support.waiting import alive, ends, until

_FLEET = "shimmed"
_HELLO = to_json(Hello(_FLEET, 1, 600.0, __version__))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTENANT_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("COTENANT_NODE", "b")
    monkeypatch.setenv("COTENANT_GPUS", "8GiB")


def agents(tmp_path: Path) -> list[int]:
    """Return the processes that have the lock of this folder's agent."""
    mark = f"COTENANT_STATE_DIR={tmp_path}".encode()
    found = []
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if mark in environment and b"\0agent\0" in line and alive(pid):
            found.append(pid)
    return found


@pytest.mark.slow
async def test_the_end_of_an_agent_is_said_at_once_and_another_one_is_started(tmp_path: Path) -> None:
    shim = Shim(_FLEET)
    try:
        hello: Json = (await shim.call("hello", _HELLO, 60.0))["result"]
        (pid,) = agents(tmp_path)
        poll = to_json(Poll(hello["seq"], 60.0))
        polling = asyncio.create_task(shim.call("poll", poll, 60.0))
        await shim.call("renew", {"epoch": 1, "stamp": hello["stamp"]}, 60.0)
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert await asyncio.to_thread(ends, pidfd)
        async with asyncio.timeout(50):
            answers = [await polling]
        while "result" not in answers[-1]:
            answers.append(await shim.call("hello", _HELLO, 60.0))
            await asyncio.sleep(0.01)
        # The connection that breaks first may be that of the poll, or the one at which it listens.
        assert {each["error"]["code"] for each in answers[1:-1]} == {AgentGone.code}
        assert answers[-2]["error"]["message"] == "the agent of b has ended, with all its engines"
        assert answers[-1]["result"]["seq"] > hello["seq"]
        (another,) = agents(tmp_path)
        assert another != pid
    finally:
        for pid in agents(tmp_path):
            os.kill(pid, signal.SIGTERM)
        await until(lambda: not agents(tmp_path))


@pytest.mark.slow
async def test_what_a_machine_says_of_itself_holds_for_its_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of variables in docs/nodes.md, and which llama-server is used."""
    (tmp_path / "own").mkdir()
    own, of_daemon = fake_server(tmp_path / "own"), fake_server(tmp_path)
    monkeypatch.setenv("COTENANT_MACHINE_ID", "the-machine")

    async def programs(shim: Shim, given: Path | None) -> list[str]:
        hello = to_json(Hello(_FLEET, 1, 600.0, __version__, llama_server=given))
        answer = from_json(HelloAnswer, (await shim.call("hello", hello, 60.0))["result"])
        assert (answer.identity.name, answer.identity.machine_id) == ("b", "the-machine")
        (gpu,) = answer.reading.inventory.devices
        assert gpu.total_bytes == 8 << 30
        return [build.program for build in answer.builds if build.form == "llama-server"]

    for variable, expected in ((str(own), own), ("", of_daemon)):
        monkeypatch.setenv("COTENANT_LLAMA_SERVER", variable)
        shim = Shim(_FLEET)
        try:
            assert str(expected) in await programs(shim, of_daemon)
            if not variable:
                for absent in (tmp_path / "only-on-the-daemons-machine", None):
                    assert str(of_daemon) not in await programs(shim, absent)
                assert str(of_daemon) in await programs(shim, of_daemon)
            assert agents(tmp_path)
            assert AgentFolder.of(_FLEET).log.is_relative_to(tmp_path)
            assert (AgentFolder.of(_FLEET).path / "lease").exists()
        finally:
            for pid in agents(tmp_path):
                os.kill(pid, signal.SIGTERM)
            await until(lambda: not agents(tmp_path))


@pytest.mark.slow
async def test_why_an_agent_does_not_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotenant.ray.shim._START_S", 1.0)
    log = AgentFolder.of(_FLEET).log
    log.parent.mkdir(parents=True)
    (log.parent / "agent.lock").mkdir()
    error = (await Shim(_FLEET).call("hello", _HELLO, 60.0))["error"]
    assert error["message"].startswith("the agent did not start within 1 s")
    assert str(log) in error["hint"]
