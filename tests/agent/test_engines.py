"""An engine on another machine, from the order to its end, by an agent that is a process of its own."""

from pathlib import Path

from tests.engines.contract import complete, running
from tests.support.agents import Daemon, agent
from tests.support.engines.orders import fake_server, host_order


async def test_an_engine_is_started_asked_through_the_gate_and_stopped(tmp_path: Path) -> None:
    with agent(tmp_path) as there:
        async with Daemon(there, llama_server=fake_server(tmp_path)).connected() as daemon:
            order = host_order(tmp_path / "m.gguf")
            async with running(daemon.host, order) as engine:
                assert b'"choices"' in await complete(engine)
