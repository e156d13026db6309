"""A project of containers, as an operator and the daemon have it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from cotenant.domain.devices import DeviceId
from cotenant.domain.units import GIB, MIB
from cotenant.services.compose.orchestrator import ComposeOrchestrator
from cotenant.services.model import (
    ApplyOrder,
    ApplyStatus,
    Assignment,
    OnFailure,
    SavedConfiguration,
    Service,
    ServiceDevice,
    ServicesSettings,
    Strategy,
)
from tests.support.containers.container_bed import GPU_UUIDS, IDLE, IMAGE, ContainerBed

AT = 1737628200.0
DEVICES = (
    ServiceDevice(DeviceId(GPU_UUIDS[0]), 0, "RTX A5500", 24564 * MIB),
    ServiceDevice(DeviceId(GPU_UUIDS[1]), 1, "RTX A400", 4094 * MIB),
)
_numbers = count()


def idle(**more: Any) -> dict[str, Any]:
    """A service that does nothing and ends at once when it is told to."""
    return {"image": IMAGE, "command": IDLE, "network_mode": "none", **more}


def saved(number: int, *assignments: Assignment) -> SavedConfiguration:
    return SavedConfiguration(number, AT, Strategy.MANUAL, assignments)


def pin(service: str, gpu: int | None, budget_gb: float | None = None) -> Assignment:
    return Assignment(service, gpu, vram_budget_gb=budget_gb)


def orchestrator(file: Path, folder: Path, **options: Any) -> ComposeOrchestrator:
    """An orchestrator of one compose file; `options` are settings, or the orchestrator's own."""
    own = {name: options.pop(name) for name in ("settle_s", "patience_s") if name in options}
    settings = ServicesSettings((file,), folder / "config", **options)
    return ComposeOrchestrator(settings, folder / "state", **own)


@contextmanager
def answering(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/health"
        finally:
            server.shutdown()
            thread.join()


class Project:
    """A compose project in a folder, with the orchestrator that pins its services."""

    def __init__(self, folder: Path, services: dict[str, Any], **options: Any) -> None:
        self.folder = folder
        self.name = f"t{next(_numbers)}"
        self.file = folder / "docker-compose.prod.yml"
        self.file.write_text(yaml.safe_dump({"services": services}))
        self.options = {"settle_s": 0.3, "command_timeout_s": 300.0, **options}
        self.services = {
            name: Service(name, vram_bytes=7 * GIB, budget_env="VRAM_BUDGET_GB", health_timeout_s=120)
            for name in services
        }
        self.orchestrator = self.anew()
        self.told: list[ApplyStatus] = []
        self.before: dict[str, Assignment] = {}

    def anew(self, **options: Any) -> ComposeOrchestrator:
        """The orchestrator of another run of the daemon."""
        return orchestrator(self.file, self.folder, **{"project": self.name, **self.options, **options})

    def order(
        self,
        configuration: SavedConfiguration,
        changed: Sequence[str],
        *,
        on_failure: OnFailure = OnFailure.ROLLBACK,
        restore_number: int | None = None,
    ) -> ApplyOrder:
        return ApplyOrder(
            configuration.number,
            [self.services[name] for name in changed],
            dict(self.before),
            {each.service: each for each in configuration.assignments},
            on_failure,
            restore_number,
        )

    async def apply(
        self, configuration: SavedConfiguration, changed: Sequence[str], **options: Any
    ) -> ApplyStatus:
        """Save a configuration and apply it to the services named."""
        self.orchestrator.write(configuration, list(self.services.values()), DEVICES)
        order = self.order(configuration, changed, **options)
        ended = await self.orchestrator.apply(order, self.told.append)
        self.before = {
            each.service: each.assignment for each in await self.orchestrator.containers() if each.assignment
        }
        return ended

    def inside(self, bed: ContainerBed, service: str, command: str) -> str:
        return bed.podman("exec", f"{self.name}_{service}_1", "sh", "-c", command)
