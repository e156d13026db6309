"""Engines of every kind, each started by the host of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

from cotenant.domain.devices import DeviceId
from cotenant.domain.models import EngineKind
from cotenant.engines.command.engine import CommandHost
from cotenant.engines.launch.launchers import Launchers
from cotenant.engines.llama_cpp.engine import LlamaHost
from cotenant.engines.ollama.engine import OllamaHost
from cotenant.engines.process.log_folder import LogFolder
from cotenant.engines.remote.engine import RemoteHost
from cotenant.engines.vllm.engine import VllmHost
from cotenant.engines.vllm.sleep import Meter
from cotenant.interfaces import Engine, EngineHost, EngineOrder


class Hosts:
    """Starts the engine that an order's recipe names. `vllm` keeps what sleeps."""

    def __init__(
        self, llama_cpp: EngineHost, logs: LogFolder, meter: Meter, exclusive: Set[DeviceId]
    ) -> None:
        launchers = Launchers()
        self.vllm = VllmHost(logs, meter, exclusive=exclusive, launcher=launchers)
        self._by_kind: Mapping[EngineKind, EngineHost] = {
            EngineKind.LLAMA_CPP: llama_cpp,
            EngineKind.VLLM: self.vllm,
            EngineKind.OLLAMA: OllamaHost(),
            EngineKind.COMMAND: CommandHost(logs, exclusive=exclusive, launcher=launchers),
            EngineKind.REMOTE: RemoteHost(),
        }

    @classmethod
    def of_this_machine(
        cls,
        log_dir: Path,
        meter: Meter,
        *,
        llama_server: Path | None,
        cuda_version: str | None,
        exclusive: Set[DeviceId],
    ) -> Hosts:
        """Make a host of each kind, all with one folder of logs."""
        logs = LogFolder(log_dir)
        llama_cpp = LlamaHost(
            log_dir=logs,
            configured=llama_server,
            cuda_version=cuda_version,
            exclusive=exclusive,
            launcher=Launchers(),
        )
        return cls(llama_cpp, logs, meter, exclusive)

    async def start(self, order: EngineOrder) -> Engine:
        """Start loading. Raises CotenantError before anything runs."""
        return await self._by_kind[order.placement.recipe.engine].start(order)
