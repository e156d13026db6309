"""The command and environment that start a build for an order."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cotenant.domain.engines import EngineBuild, EngineForm
from cotenant.engines.arguments import LlamaArguments, visible_devices
from cotenant.engines.builds import server_flags
from cotenant.engines.environment import engine_environment
from cotenant.engines.process import guarded
from cotenant.engines.server_flags import server_argv
from cotenant.interfaces import EngineOrder


@dataclass(frozen=True, slots=True)
class LaunchCommand:
    """What to execute; it ties itself to this process before anything else."""

    argv: tuple[str, ...]
    env: dict[str, str]


def launch_command(build: EngineBuild, order: EngineOrder, arguments: LlamaArguments) -> LaunchCommand:
    """Render `arguments` for one build. Raises EngineMissing if a llama-server cannot be told them."""
    if build.form is EngineForm.EMBEDDED:
        worker = (build.program, "-P", "-m", "cotenant.engines.llama_worker")
        argv = [*worker, str(os.getpid()), arguments.to_json()]
    else:
        argv = guarded([build.program, *server_argv(arguments, server_flags(build))])
    return LaunchCommand(tuple(argv), engine_environment(os.environ, visible_devices(order), order.env))
