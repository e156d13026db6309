"""Any server of OpenAI's API that an argument vector starts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
from collections.abc import Mapping
from typing import Final

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import EngineBuild
from cotenant.domain.errors import BadRecipe, EngineMissing
from cotenant.domain.units import MIB
from cotenant.engines.base.server import ServerEngine, ServerHost, Started
from cotenant.engines.launch.launchers import launch
from cotenant.engines.launch.plan import LaunchPlan, visible_devices
from cotenant.engines.process.ports import LOOPBACK
from cotenant.interfaces import EngineOrder

WORDS: Final = ("host", "port", "model", "path", "gpus", "memory_mib", "pid")
"""The words that a command may have in braces; `pid` only in the command that stops it.

Values of `env` may have `{key}`, the key that requests to the engine then have.
"""
_WORD: Final = re.compile(r"\{([a-z_]+)\}")

_log = logging.getLogger(__name__)


class CommandHost(ServerHost):
    """Starts engines by the operator's own commands."""

    async def start(self, order: EngineOrder) -> CommandEngine:
        """Start loading. Raises BadRecipe, EngineMissing or EngineLoadFailed."""
        options = order.options
        if not options.command:
            raise BadRecipe(f"{order.name} has no command that starts it", hint="Give it a `command:`.")

        def plan_for(port: int) -> LaunchPlan:
            words = _words(order, port)
            argv = (*(fill(word, words) for word in options.command), *order.args)
            # By its environment only: everybody may read a command line.
            key = secrets.token_urlsafe(32)
            env = {name: fill(value, {"key": key}) for name, value in order.env.items()}
            return LaunchPlan.of(
                order,
                argv,
                port,
                env=env,
                key=key if env != order.env else None,
                health_path=options.health_path,
                shares_port=False,
            )

        return CommandEngine(await self._start(order, plan_for))


class CommandEngine(ServerEngine):
    """One server that the operator's command runs. The operator's `stop` or SIGTERM ends it."""

    def __init__(self, started: Started) -> None:
        plan, options = started.plan, started.order.options
        build = EngineBuild(EngineKind.COMMAND, EngineKind.COMMAND, plan.argv[0], "unknown")
        super().__init__(started, build, model=options.model)
        words = {**_words(started.order, plan.port), "pid": str(self.pid)}
        self._stop_argv = tuple(fill(word, words) for word in options.stop)
        self._plan = plan

    async def stop(self, grace_s: float) -> None:
        """End it with the operator's `stop`, by force after `grace_s`; return when its group has ended."""
        if self._stop_argv and grace_s > 0 and not self.ended:
            self._stopping = True
            await self._ask_to_stop(grace_s)
        await super().stop(grace_s)

    async def _ask_to_stop(self, grace_s: float) -> None:
        deadline = self._loop.time() + grace_s
        plan = LaunchPlan(self._name, self._stop_argv, self._plan.port, env=self._plan.env)
        try:
            output = os.open(self.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
            try:
                asking = await launch(plan, output)
            finally:
                os.close(output)
        except (OSError, EngineMissing) as error:
            _log.error("%s: its `stop:` cannot be run: %s", self._name, error)
            return
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    if await asking.wait() == 0:
                        await self._process.wait()
        finally:
            await asking.stop(0)


def fill(word: str, words: Mapping[str, str]) -> str:
    """Replace the words in braces with their values; other braces stay as they are."""
    return _WORD.sub(lambda match: words.get(match[1], match[0]), word)


def _words(order: EngineOrder, port: int) -> dict[str, str]:
    """Return the values of the words in braces; `gpus` are the ids of the GPUs, with commas."""
    devices = visible_devices(order)
    claimed = sum(share.parts.total for share in order.placement.used_shares)
    return {
        "host": LOOPBACK,
        "port": str(port),
        "model": order.name,
        "path": "" if order.model_path is None else str(order.model_path),
        "gpus": ",".join(device.id for device in devices),
        "memory_mib": str(claimed // MIB),
    }
