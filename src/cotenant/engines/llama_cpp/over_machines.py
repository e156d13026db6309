"""One model over several machines: llama.cpp's RPC servers lend GPUs to the llama-server that runs it.

An RPC server asks nobody who he is, and whoever reaches it can read and write its memory: it listens on the
loopback address alone, and is reached from elsewhere through the gate of its machine's agent.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from cotenant.domain.engines import EngineBuild
from cotenant.domain.errors import EngineMissing
from cotenant.domain.models import SplitMode
from cotenant.engines.base.server import ServerEngine
from cotenant.engines.launch.plan import LaunchPlan, runs_on_described, visible_devices
from cotenant.engines.llama_cpp.arguments import LlamaArguments
from cotenant.engines.llama_cpp.builds import NO_RPC_HINT
from cotenant.engines.process.ports import LOOPBACK
from cotenant.interfaces import EngineOrder

_POLL_S: Final = 0.01


def with_lent_gpus(order: EngineOrder, arguments: LlamaArguments, own: str) -> LlamaArguments:
    """Return the arguments of an engine that also uses the GPUs of an order's parts.

    Its own come first, which the build names `own` and a number. Described GPUs do not exist: what is planned
    on its own is in host RAM, which llama.cpp fills first, and a part on such ones is one device.
    """
    counts: list[int] = []
    placement = order.placement
    if visible_devices(order):
        counts += (share.count for share in placement.on(placement.node).used_shares)
    names = [f"{own}{number}" for number in range(len(counts))]
    lent = [count for part in order.parts for count in _lent(order, part.node)]
    counts, names = [*counts, *lent], [*names, *(f"RPC{number}" for number in range(len(lent)))]
    return replace(
        arguments,
        use_gpu=True,
        n_gpu_layers=sum(counts),
        tensor_split=tuple(counts) if len(counts) > 1 else (),
        split_mode=SplitMode.LAYER,
        draft_device=names[0] if arguments.draft_path is not None else "",
        rpc_servers=tuple(part.endpoint.authority for part in order.parts),
        devices=tuple(names),
    )


def check_versions(order: EngineOrder, build: EngineBuild) -> None:
    """Raise EngineMissing unless all machines of a model have one build: the RPC protocol knows no other."""
    for part in order.parts:
        if part.version != build.version:
            raise EngineMissing(
                f"{order.name} cannot be over these machines: the llama.cpp of {order.placement.node} is "
                f"{build.version}, that of {part.node} is {part.version}",
                hint=NO_RPC_HINT,
            )


def lending_plan(build: EngineBuild, order: EngineOrder, port: int) -> LaunchPlan:
    """Return how the RPC server of a build is started, for the GPUs of an order."""
    argv = (build.rpc_server or "", "--host", LOOPBACK, "--port", str(port))
    return LaunchPlan.of(order, argv, port, shares_port=False)


class LendingEngine(ServerEngine):
    """One RPC server. It is ready once it listens: it answers its one client, and nothing else."""

    _dies_with_status_0 = True

    async def _healthy(self) -> None:
        while not (await self._listens() or self._health_problem is not None):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)

    async def _end_if_hung(self) -> None:
        """Do nothing: whether it moves is seen at the engine that uses it."""


def _lent(order: EngineOrder, node: str) -> Iterator[int]:
    part = order.placement.on(node)
    counts = [share.count for share in part.used_shares]
    yield from [sum(counts)] if runs_on_described(part) else counts
