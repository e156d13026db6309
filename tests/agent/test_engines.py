"""An engine on another machine, from the order to its end, by an agent that is a process of its own."""

from pathlib import Path

import pytest

from tests.engines.contract import complete, running
from tests.support.agents import Daemon, agent
from tests.support.engines.orders import host_order
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.waiting import alive


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
