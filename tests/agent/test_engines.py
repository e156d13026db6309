"""An engine on another machine, from the order to its end, by an agent that is a process of its own."""

from pathlib import Path

import pytest

from cotenant.domain.errors import BadRequest
from cotenant.nodes.messages import EndSleeping, InstallEngine, Nothing
from cotenant.nodes.protocol import BUILDS, DOCTOR, END_SLEEPING, INSTALL_ENGINE
from cotenant.nodes.transport import ask
from tests.engines.contract import complete, running
from tests.support.agents import Daemon, agent
from tests.support.engines.orders import fake_server, host_order
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.waiting import alive


async def test_an_engine_is_started_asked_through_the_gate_and_stopped(tmp_path: Path) -> None:
    with agent(tmp_path, "--llama-server", str(fake_server(tmp_path))) as there:
        async with Daemon(there).connected() as daemon:
            order = host_order(tmp_path / "m.gguf")
            async with running(daemon.host, order) as engine:
                assert b'"choices"' in await complete(engine)


@pytest.mark.slow
@pytest.mark.engine
async def test_llama_cpp_itself_runs_on_another_machine(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    with agent(tmp_path) as there:
        async with Daemon(there).connected() as daemon:
            order = host_order(build_tiny_llama(tmp_path / "tiny.gguf"))
            async with running(daemon.host, order) as engine:
                assert b'"choices"' in await complete(engine)
                report = engine.report()
                assert report is not None
                assert sum(device.parts.total for device in report.devices) > 0
                pid = engine.node_pid  # type: ignore[attr-defined]
            assert not alive(pid)


async def test_the_builds_of_a_machine_are_listed_and_another_is_refused_in_words(tmp_path: Path) -> None:
    with agent(tmp_path, "--llama-server", str(fake_server(tmp_path))) as there:
        async with Daemon(there).connected() as daemon:
            found = await ask(daemon.transport, "b", BUILDS, Nothing(), 60)
            assert found.builds == daemon.answer.builds
            assert str(tmp_path / "fake-llama-server") in [build.program for build in found.builds]
            with pytest.raises(BadRequest, match="no build 'quantum'"):
                await ask(daemon.transport, "b", INSTALL_ENGINE, InstallEngine(1, "quantum"), 60)
            nobody = await ask(daemon.transport, "b", END_SLEEPING, EndSleeping(1), 60)
            assert nobody.names == ()


@pytest.mark.slow
async def test_the_doctor_of_a_machine_is_asked_through_its_agent(tmp_path: Path) -> None:
    with agent(tmp_path) as there:
        async with Daemon(there).connected() as daemon:
            report = (await ask(daemon.transport, "b", DOCTOR, Nothing(), 120)).report
            assert report["findings"]
            assert set(report["counts"]) == {"problem", "warning", "unknown", "ok"}
