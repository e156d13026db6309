"""Engines of an agent that share a card through MPS, with a stand-in for its control program."""

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.devices import MpsGroup, MpsMode, MpsTerms
from cotenant.domain.errors import MpsMissing
from cotenant.domain.placements import Budget, Share
from cotenant.interfaces import EngineOrder
from cotenant.nodes.messages import ReadingTaken, ShareCards
from cotenant.nodes.protocol import SHARE_CARDS
from cotenant.nodes.transport import ask
from tests.support.agents import AgentProcess, Daemon, agent
from tests.support.engines.orders import fake_server, host_order
from tests.support.gpus.fake_mps import mps_processes, stand_in
from tests.support.waiting import until, wait_until

CARD = "GPU-aaaaaaaa-1111"


@pytest.fixture
def there() -> Iterator[AgentProcess]:
    # Short, since a socket's path has 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="mps-") as name:
        folder = Path(name)
        gpus = folder / "gpus.yaml"
        gpus.write_text(f"- {{name: card, total_mib: 8000, compute_mode: exclusive_process, uuid: {CARD}}}")
        env = {
            "COTENANT_MPS_CONTROL": str(stand_in(folder / "bin")),
            "CUDA_MPS_PIPE_DIRECTORY": str(folder / "none"),
        }
        flags = ("--gpus", str(gpus), "--llama-server", str(fake_server(folder)))
        with agent(folder, *flags, env=env) as running:
            yield running
        wait_until(lambda: not mps_processes(folder / "state"))


def on_card(daemon: Daemon) -> EngineOrder:
    """An order for all layers of a model on the agent's card."""
    (device,) = daemon.answer.reading.inventory.devices
    order = host_order(Path("/m.gguf"))
    budget = Budget(device, device.total_bytes, device.total_bytes or 0)
    share = Share(budget, 0, 3, 5, has_output=True, parts=order.placement.shares[0].parts)
    placement = replace(order.placement, shares=(share,), n_gpu_layers=5)
    return replace(order, placement=placement, mps=MpsTerms(threads_percent=30))


async def test_engines_share_a_card_once_the_daemon_says_so(there: AgentProcess) -> None:
    async with Daemon(there).connected() as daemon:
        (device,) = daemon.answer.reading.inventory.devices
        assert daemon.answer.reading.admissions[device.id].max_engines == 1
        shared = ShareCards(1, MpsMode.AUTO, MpsGroup.ALL, {device.id: 2})
        await ask(daemon.transport, "b", SHARE_CARDS, shared, 60)

        def admission() -> object:
            told = [each for each in daemon.events if isinstance(each, ReadingTaken)]
            found = told[-1].admissions.get(device.id) if told else None
            return found and (found.max_engines, found.group)

        await until(lambda: admission() == (48, "mps"))
        engine = await daemon.host.start(on_card(daemon))
        await engine.wait_ready(60)
        raw = await asyncio.to_thread(Path(f"/proc/{engine.node_pid}/environ").read_bytes)
        variables = dict(each.decode().partition("=")[::2] for each in raw.split(b"\0"))
        assert variables["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "30"
        assert Path(variables["CUDA_MPS_PIPE_DIRECTORY"]).is_relative_to(there.folder)
        assert mps_processes(there.folder / "state")
        # Another mode waits until no engine runs.
        await ask(daemon.transport, "b", SHARE_CARDS, replace(shared, mode=MpsMode.OFF), 60)
        assert (await daemon.hello()).reading.admissions[device.id].group == "mps"
        await engine.stop(0)
        await until(lambda: admission() == (1, None))


async def test_a_machine_without_the_program_says_so_where_it_is_required(tmp_path: Path) -> None:
    with agent(tmp_path, env={"COTENANT_MPS_CONTROL": "/nonexistent"}) as there:
        async with Daemon(there).connected() as daemon:
            required = ShareCards(1, MpsMode.REQUIRED, MpsGroup.ALL, {})
            with pytest.raises(MpsMissing, match="/nonexistent"):
                await ask(daemon.transport, "b", SHARE_CARDS, required, 60)
