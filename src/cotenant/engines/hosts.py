"""Starts engines of every kind, each by the host of its kind."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Final

from cotenant.domain.engine_kinds import EngineKind
from cotenant.engines.base.host_inputs import HostInputs as HostInputs
from cotenant.engines.command.engine import CommandHost
from cotenant.engines.llama_cpp.engine import LlamaHost
from cotenant.engines.ollama.engine import OllamaHost
from cotenant.engines.remote.engine import RemoteHost
from cotenant.engines.vllm.engine import VllmHost
from cotenant.interfaces import Engine, EngineHost, EngineOrder

HOSTS: Final[Mapping[EngineKind, Callable[[HostInputs], EngineHost]]] = {
    EngineKind.LLAMA_CPP: LlamaHost,
    EngineKind.VLLM: VllmHost,
    EngineKind.OLLAMA: lambda inputs: OllamaHost(),
    EngineKind.COMMAND: CommandHost,
    EngineKind.REMOTE: lambda inputs: RemoteHost(),
}


class EngineHosts:
    """Starts the engine that an order's recipe names; some hosts keep sleeping engines."""

    def __init__(self, inputs: HostInputs) -> None:
        self._by_kind = {kind: make(inputs) for kind, make in HOSTS.items()}
        self._sleeping = [host for host in self._by_kind.values() if isinstance(host, VllmHost)]

    async def start(self, order: EngineOrder) -> Engine:
        """Start loading. Raises CotenantError before anything runs."""
        return await self._by_kind[order.placement.recipe.engine].start(order)

    @property
    def asleep(self) -> Mapping[str, int]:
        """The process id of each sleeping model."""
        return {name: pid for host in self._sleeping for name, pid in host.asleep.items()}

    async def end_sleeping(self, keep: Set[str] = frozenset()) -> Sequence[str]:
        """End the sleeping engines of models that are not in `keep`, and return their names."""
        return [name for host in self._sleeping for name in await host.end_sleeping(keep)]

    def forbid_sleep(self) -> None:
        """From now on, end engines instead of putting them to sleep."""
        for host in self._sleeping:
            host.sleeps = False
