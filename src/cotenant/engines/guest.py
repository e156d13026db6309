"""A command that others run, as the engine of the memory that it leases: it serves nothing."""

from cotenant.domain.devices import launch_environment
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint
from cotenant.engines.base.external import ExternalEngine
from cotenant.engines.launch.plan import visible_devices
from cotenant.interfaces import EngineOrder


class GuestEngine(ExternalEngine):
    """A guest on its devices. `env` shows it exactly these, `pid` is its process, if it is known."""

    def __init__(self, order: EngineOrder, pid: int | None) -> None:
        super().__init__(order.name, Endpoint("127.0.0.1", 1), EngineKind.COMMAND)
        self.pid = pid
        self.env = {**order.env, **launch_environment(visible_devices(order))}

    async def wait_ready(self, timeout_s: float) -> None:
        """Return at once: memory that is leased need not be loaded."""


class GuestHost:
    """Hands memory to one guest; `engine` is what it got."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid
        self.engine: GuestEngine | None = None

    async def start(self, order: EngineOrder) -> GuestEngine:
        """Return at once."""
        self.engine = GuestEngine(order, self.pid)
        return self.engine
