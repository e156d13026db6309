"""Starts engines of every kind, each by the host of its kind."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cotenant.domain.devices import DeviceId
from cotenant.domain.engine_kinds import EngineKind
from cotenant.engines.command.engine import CommandHost
from cotenant.engines.llama_cpp.engine import LlamaHost
from cotenant.engines.ollama.engine import OllamaHost
from cotenant.engines.process.log_folder import LogFolder
from cotenant.engines.remote.engine import RemoteHost
from cotenant.engines.vllm.engine import VllmHost
from cotenant.engines.vllm.sleep import Meter
from cotenant.interfaces import Engine, EngineHost, EngineOrder


@dataclass(frozen=True, slots=True)
class HostInputs:
    """What hosts may need. `exclusive` are the cards that admit one process at a time.

    `llama_server` is the operator's program, `cuda_version` the driver's.
    """

    logs: LogFolder
    meter: Meter
    exclusive: Set[DeviceId] = frozenset()
    llama_server: Path | None = None
    cuda_version: str | None = None


HOSTS: Final[Mapping[EngineKind, Callable[[HostInputs], EngineHost]]] = {
    EngineKind.LLAMA_CPP: lambda inputs: LlamaHost(
        inputs.logs,
        configured=inputs.llama_server,
        cuda_version=inputs.cuda_version,
        exclusive=inputs.exclusive,
    ),
    EngineKind.VLLM: lambda inputs: VllmHost(inputs.logs, inputs.meter, exclusive=inputs.exclusive),
    EngineKind.OLLAMA: lambda inputs: OllamaHost(),
    EngineKind.COMMAND: lambda inputs: CommandHost(inputs.logs, exclusive=inputs.exclusive),
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
