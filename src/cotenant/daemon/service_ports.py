"""The ports of models that are services of their own, as the configuration says now."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from cotenant.concurrency.unless_set import unless_set
from cotenant.config.configuration import ModelEntry
from cotenant.daemon.core.settings import is_loopback
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadSetting, PortTaken
from cotenant.gateway.server import bind
from cotenant.gateway.service_port import ServicePort
from cotenant.gateway.shared_lease import SharedLeases
from cotenant.interfaces import Router

_LOG = logging.getLogger(__name__)


class ServicePorts:
    """One ServicePort for each `listen` of the entries that `models` returns, followed as they change."""

    def __init__(self, router: Router, models: Callable[[], Iterable[ModelEntry]]) -> None:
        self._leases = SharedLeases(router)
        self._models = models
        self._ports: dict[Endpoint, ServicePort] = {}
        self._left: list[ServicePort] = []
        self._changed = asyncio.Event()

    def follow(self) -> None:
        """Look again at what is configured."""
        self._changed.set()

    async def open(self) -> None:
        """Listen wherever it is configured. Raises PortTaken or BadSetting."""
        for address, model in self._wanted().items():
            await self._open(address, model)

    async def beside(self, serving: Coroutine[Any, Any, None], stop: asyncio.Event, grace_s: float) -> None:
        """Follow the configuration while something serves; connections have `grace_s` after `stop`."""
        async with asyncio.TaskGroup() as both:
            both.create_task(serving)
            both.create_task(self._run(stop, grace_s))

    def _wanted(self) -> dict[Endpoint, str]:
        return {entry.listen: entry.name for entry in self._models() if entry.listen is not None}

    async def _run(self, stop: asyncio.Event, grace_s: float) -> None:
        try:
            while await unless_set(stop, self._one_change()):
                pass
            await self._close(grace_s)
        finally:
            await self._close(0.0)

    async def _one_change(self) -> None:
        await self._changed.wait()
        self._changed.clear()
        wanted = self._wanted()
        for address in self._ports.keys() - wanted.keys():
            # Its model may be served at another address now, so who is connected stays until it ends.
            self._ports[address].shut()
            self._left.append(self._ports.pop(address))
            _LOG.info("no longer listening: address=%s", address.authority)
        for address, model in wanted.items():
            if (port := self._ports.get(address)) is not None:
                port.model = model
                continue
            try:
                await self._open(address, model)
            except (PortTaken, BadSetting) as error:
                _LOG.error("%s (%s)", error.message, error.hint)

    async def _open(self, address: Endpoint, model: str) -> None:
        try:
            sock = bind(address.host, address.port)
        except (PortTaken, BadSetting) as error:
            hint = "Give it another `listen:`, or stop the program that uses the port."
            raise type(error)(f"listen of {model}: {error.message}", hint=hint) from None
        port = self._ports[address] = ServicePort(model, self._leases)
        await port.open(sock)
        _LOG.info("listening for one model: address=%s model=%s", address.authority, model)
        if not is_loopback(address.host):
            text = "other machines can reach the port of %s at %s, where nobody is asked for a key"
            _LOG.warning(text, model, address.authority)

    async def _close(self, grace_s: float) -> None:
        for port in self._ports.values():
            port.shut()
        every = (*self._ports.values(), *self._left)
        await asyncio.gather(*(port.close(grace_s) for port in every))
