"""Installs a build of llama.cpp on an agent's machine."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from cotenant.agent.events import EventLog
from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.domain.devices import Inventory
from cotenant.domain.engines import InstallOrder
from cotenant.domain.errors import BadRequest, CotenantError, EngineInstallFailed
from cotenant.engines.llama_cpp.install import (
    Flavour,
    InstallPlan,
    install,
    plan_install,
    read_system,
    shown,
)
from cotenant.nodes.messages import InstallBegun, InstallProgress
from cotenant.nodes.protocol import error_body

_LOG = logging.getLogger(__name__)


class Installer:
    """Installs builds on a machine called `node`, one at a time. `installed` is called after each."""

    def __init__(self, node: str, events: EventLog, installed: Callable[[], None]) -> None:
        self._node = node
        self._events = events
        self._installed = installed
        self._busy = False
        self._number = 0
        self._tasks = BackgroundTasks()

    async def begin(self, order: InstallOrder, inventory: Inventory) -> InstallBegun:
        """Begin, and InstallProgress follows; or say what would run.

        Raises BadRequest or EngineInstallFailed.
        """
        flavour = order.flavour or (inventory.vendor.traits.backend if inventory.vendor else Flavour.CPU)
        if flavour not in [*Flavour]:
            raise BadRequest(f"there is no build {flavour!r}", hint=f"There are {', '.join(Flavour)}.")
        if self._busy and not order.dry_run:
            raise BadRequest(
                f"{self._node} installs an engine already",
                hint=f"What comes of it: cotenant engine list --node {self._node}",
            )
        if not order.dry_run:
            self._busy = True
        try:
            plan = await asyncio.to_thread(_plan, Flavour(flavour), order, inventory.cuda_version)
        except BaseException:
            if not order.dry_run:
                self._busy = False
            raise
        if not order.dry_run:
            self._number += 1
            self._tasks.start(self._run(plan, self._number))
        return InstallBegun(shown(plan.command), flavour, plan.notes, self._number)

    async def _run(self, plan: InstallPlan, number: int) -> None:
        loop = asyncio.get_running_loop()

        def say(line: str) -> None:
            _LOG.info("%s", line)
            loop.call_soon_threadsafe(self._events.add, InstallProgress(number, line))

        try:
            # In a thread that nobody waits for: an agent that is stopped leaves pip behind.
            end = InstallProgress(number, build=await run_in_detached_thread(partial(install, plan, say=say)))
        except CotenantError as error:
            end = InstallProgress(number, error=error_body(error))
        except Exception as unforeseen:
            _LOG.exception("an install failed unexpectedly")
            failed = EngineInstallFailed(f"the install failed unexpectedly: {unforeseen}")
            end = InstallProgress(number, error=error_body(failed))
        finally:
            self._busy = False
            self._installed()
        self._events.add(end)


def _plan(flavour: Flavour, order: InstallOrder, cuda_version: str | None) -> InstallPlan:
    return plan_install(
        flavour,
        read_system(cuda_version),
        index_url=order.index,
        verify=order.verify,
        newest=order.newest,
    )
