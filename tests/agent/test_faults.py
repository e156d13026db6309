"""What an agent makes of calls that are none, of daemons that are not its own, and of its own end."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cotenant import __version__
from cotenant.domain.engines import InstallOrder, InstallStage, InstallStep
from cotenant.domain.errors import (
    BadRequest,
    BadSetting,
    EngineInstallFailed,
    EngineLoadFailed,
    EngineMissing,
)
from cotenant.domain.nodes import BadNodeMessage, NodeUnreachable, WrongProtocol
from cotenant.nodes.messages import (
    AwaitReady,
    EngineState,
    Hello,
    InstallEngine,
    Nothing,
    OfEngine,
    Stop,
)
from cotenant.nodes.protocol import (
    AWAIT_READY,
    BUILDS,
    BUSY_SLOTS,
    DOCTOR,
    HELLO,
    INSTALL_ENGINE,
    MAX_LINE_BYTES,
    STOP,
)
from cotenant.nodes.transport import ask
from tests.engines.contract import complete
from tests.support.agents import FLEET, AgentProcess, Daemon, agent, command
from tests.support.engines.orders import fake_server, host_order, with_env
from tests.support.waiting import ends


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    folder = tmp_path_factory.mktemp("agent")
    with agent(folder, "--llama-server", str(fake_server(folder))) as running:
        yield running


async def said(there: AgentProcess, sent: bytes) -> dict[str, object]:
    """What the agent answers to one line."""
    reader, writer = await asyncio.open_unix_connection(there.socket)
    try:
        writer.write(sent)
        async with asyncio.timeout(60):
            answer: dict[str, object] = json.loads(await reader.readline() or "{}")
            return answer
    finally:
        writer.close()


@pytest.mark.parametrize(
    "line", [b"junk\n", b"[]\n", b"{}\n", b"\xff\xfe\n", b'{"id": 1}\n', b"[" * 9999 + b"\n"]
)
async def test_a_line_that_is_no_call_is_answered_as_that(there: AgentProcess, line: bytes) -> None:
    answer = await said(there, line)
    assert isinstance(answer["error"], dict)
    assert answer["error"]["code"] == BadNodeMessage.code


async def test_an_endless_line_ends_its_connection_alone(there: AgentProcess) -> None:
    daemon = Daemon(there)
    await daemon.hello()
    with contextlib.suppress(ConnectionError):
        assert await said(there, b"x" * (MAX_LINE_BYTES * 2 + 100)) == {}
    await daemon.hello()
    await daemon.transport.close()


async def test_a_daemon_that_vanishes_in_a_line_is_forgotten(there: AgentProcess) -> None:
    _, writer = await asyncio.open_unix_connection(there.socket)
    writer.write(b'{"id": 1, "meth')
    writer.transport.abort()
    async with Daemon(there).connected():
        pass


async def test_another_version_is_refused_in_words_whatever_else_it_says(there: AgentProcess) -> None:
    daemon = Daemon(there)
    with pytest.raises(WrongProtocol) as refused:
        await daemon.transport.call("b", "hello", {"protocol": 2, "version": "9.9", "new": []}, 60)
    assert refused.value.message == (
        f"the agent of b is Cotenant {__version__} (protocol 1), the daemon is 9.9 (protocol 2)"
    )
    assert "same version" in refused.value.hint
    with pytest.raises(BadRequest, match="no method 'fly'"):
        await daemon.transport.call("b", "fly", {}, 60)
    with pytest.raises(BadNodeMessage, match="not a Renew: stamp"):
        await daemon.transport.call("b", "renew", {"epoch": 1}, 60)
    await daemon.transport.close()


async def test_another_fleet_is_refused(there: AgentProcess) -> None:
    daemon = Daemon(there)
    with pytest.raises(BadSetting, match=f"of the fleet '{FLEET}', the daemon of 'others'"):
        await ask(daemon.transport, "b", HELLO, Hello("others", 1, 60.0, __version__))
    assert (await ask(daemon.transport, "b", BUSY_SLOTS, OfEngine("nobody"))).busy is None
    await daemon.transport.close()


async def test_what_cannot_be_started_raises_what_it_raises_here(there: AgentProcess) -> None:
    async with Daemon(there).connected() as daemon:
        missing = replace(
            host_order(there.folder / "m.gguf"),
            options=replace(host_order(Path("x")).options, command=("/nonexistent/llama-server",)),
        )
        with pytest.raises(EngineMissing, match="/nonexistent/llama-server") as failed:
            await daemon.host.start(missing)
        assert failed.value.hint
        assert not (await daemon.hello()).engines


async def test_a_load_that_is_given_up_leaves_nothing(there: AgentProcess) -> None:
    async with Daemon(there).connected() as daemon:
        slow = with_env(host_order(there.folder / "m.gguf"), FAKE_READY_AFTER_S=600)
        engine = await daemon.host.start(slow)
        assert engine.node_pid is not None
        pidfd = os.pidfd_open(engine.node_pid)
        waiting = asyncio.create_task(engine.wait_ready(600))
        await asyncio.sleep(0)
        # Whatever gives it up does so more than once.
        await asyncio.gather(engine.stop(2), engine.stop(0), engine.stop(0))
        assert await asyncio.to_thread(ends, pidfd)
        with pytest.raises(EngineLoadFailed, match="was stopped while it was loading"):
            await waiting


def test_a_second_agent_of_a_fleet_says_who_is_the_first(there: AgentProcess) -> None:
    second = subprocess.run(command(there.folder), capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 2
    assert f"process {there.pid} is this machine's agent of the fleet '{FLEET}'" in second.stderr
    assert str(there.socket) in second.stderr
    assert not second.stdout


async def test_the_builds_of_a_machine_are_listed_and_another_is_refused_in_words(
    there: AgentProcess,
) -> None:
    async with Daemon(there).connected() as daemon:
        found = await ask(daemon.transport, "b", BUILDS, Nothing(), 60)
        assert found.builds == daemon.answer.builds
        assert found.chosen is not None
        assert found.builds[found.chosen].program == str(there.folder / "fake-llama-server")
        assert str(there.folder / "fake-llama-server") in [build.program for build in found.builds]
        with pytest.raises(BadRequest, match="no build 'quantum'"):
            await ask(daemon.transport, "b", INSTALL_ENGINE, InstallEngine(1, InstallOrder("quantum")), 60)


@pytest.mark.slow
async def test_an_install_on_a_machine_says_what_it_does_and_how_it_ended(there: AgentProcess) -> None:
    go_on = threading.Event()

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            go_on.wait(60)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Index) as index:
        threading.Thread(target=index.serve_forever, args=(0.01,), daemon=True).start()
        order = InstallOrder("cpu", f"http://127.0.0.1:{index.server_port}")
        async with Daemon(there).connected() as daemon:
            (dry,) = [step async for step in daemon.host.install(replace(order, dry_run=True))]
            assert f"--index-url {order.index}" in dry.text
            steps = daemon.host.install(order)
            assert await anext(steps) == dry
            with pytest.raises(BadRequest, match="b installs an engine already"):
                await anext(daemon.host.install(order))
            go_on.set()
            output: list[InstallStep] = []
            with pytest.raises(EngineInstallFailed, match="No matching distribution"):
                await _all_of(steps, output)
            assert {step.stage for step in output} == {InstallStage.OUTPUT}
            assert any("No matching distribution" in step.text for step in output)
            assert await anext(daemon.host.install(order)) == dry, "another may follow"
        index.shutdown()


async def _all_of(steps: AsyncIterator[InstallStep], into: list[InstallStep]) -> None:
    async for step in steps:
        into.append(step)


@pytest.mark.slow
async def test_the_doctor_of_a_machine_is_asked_through_its_agent(there: AgentProcess) -> None:
    async with Daemon(there).connected() as daemon:
        report = (await ask(daemon.transport, "b", DOCTOR, Nothing(), 120)).report
        assert report["findings"]
        assert set(report["counts"]) == {"problem", "warning", "unknown", "ok"}


async def test_an_engine_that_died_while_no_daemon_listened_is_in_the_answer_to_the_next(
    there: AgentProcess,
) -> None:
    first = Daemon(there)
    await first.hello()
    await first.renew(first.answer.stamp)
    died, stopped = [await first.host.start(host_order(there.folder / "m.gguf")) for _ in range(2)]
    assert died.node_pid is not None
    os.kill(died.node_pid, signal.SIGSEGV)
    await ask(first.transport, "b", AWAIT_READY, AwaitReady(1, died.id, 60.0))
    await ask(first.transport, "b", STOP, Stop(1, stopped.id, 0.0))
    await first.transport.close()
    ours, second = (died.id, stopped.id), Daemon(there)
    try:
        await second.hello()
        async with asyncio.timeout(60):
            while second.answer.engines or not second.answer.ended:
                await second.renew((await second.hello()).stamp)
        (told,) = [each for each in second.answer.ended if each.id in ours]
        assert second.answer.logs.keys() >= {"tiny"}
        # The end of one that was stopped is no news.
        assert (told.id, told.state) == (died.id, EngineState.ENDED)
        assert told.error is not None
        assert "crashed" in told.error.message
    finally:
        await second.transport.close()


async def test_engines_die_with_their_agent_and_the_next_one_knows_none(tmp_path: Path) -> None:
    flags = ("--llama-server", str(fake_server(tmp_path)))
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        there = first.enter_context(agent(tmp_path, *flags))
        async with Daemon(there).connected() as daemon:
            engine = await daemon.host.start(host_order(tmp_path / "m.gguf"))
            await engine.wait_ready(60)
            assert engine.node_pid is not None
            pidfd = os.pidfd_open(engine.node_pid)
            os.kill(there.pid, signal.SIGKILL)
            assert await asyncio.to_thread(ends, pidfd)
            assert await engine.busy_slots() is None
            with pytest.raises(NodeUnreachable, match="the agent of b cannot be reached"):
                await daemon.transport.call("b", "poll", {"after": 0, "wait_s": 0}, 60)
            second.enter_context(agent(tmp_path, *flags))
            assert daemon.host.reconcile((await daemon.hello()).engines) == ()
            assert (await engine.wait_exit()).why == "b does not run the engine of tiny any more"
            await engine.stop(0)
            poll = await daemon.transport.call("b", "poll", {"after": 5, "wait_s": 60}, 60)
            assert poll["lost"], "its numbers are not those of the agent before it"
            async with Daemon(there).connected() as again:
                engine = await again.host.start(host_order(tmp_path / "m.gguf"))
                await engine.wait_ready(60)
                assert b'"choices"' in await complete(engine)
                await engine.stop(0)


async def test_an_agent_ends_without_a_traceback_while_a_daemon_is_connected(tmp_path: Path) -> None:
    with agent(tmp_path, "--llama-server", str(fake_server(tmp_path))) as running:
        reader, writer = await asyncio.open_unix_connection(running.socket)
        writer.write(b'{"id": 1, "method": "none"}\n')
        assert await reader.readline()
        running.process.terminate()
        # `agent` looks into its log.
        assert await reader.read() == b""
        writer.close()
