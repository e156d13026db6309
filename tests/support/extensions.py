"""An engine kind, a GPU vendor, a launcher and an eviction policy that are only added to the registries.

Run as a script with the command's arguments, it is `cotenant` with all of them.
"""

import asyncio
import json
import sys
from enum import StrEnum
from typing import Any

import pytest

from cotenant.cli.main import main
from cotenant.clock import Clock
from cotenant.domain import engine_kinds, launching, vendors
from cotenant.domain.devices import Device, DeviceId, DeviceKind, Inventory, Reading
from cotenant.domain.engine_kinds import EngineKind, EngineTraits, ModelFormat, PlanMethod
from cotenant.domain.engines import Endpoint
from cotenant.domain.launching import LauncherKind, LauncherTraits
from cotenant.domain.units import GIB
from cotenant.domain.vendors import InventorySource, Vendor, VendorTraits
from cotenant.engines import hosts
from cotenant.engines.base.external import ExternalEngine
from cotenant.engines.launch import cards, launchers
from cotenant.engines.launch.plan import HostLauncher, LaunchPlan
from cotenant.engines.process.ports import LOOPBACK, ReservedPort
from cotenant.engines.process.process import ChildProcess
from cotenant.hardware.gpus import inventory
from cotenant.interfaces import EngineOrder
from cotenant.scheduling import policy
from cotenant.scheduling.policy import Victim

ECHO, ACME, CHROOT, ALPHABETICAL = "echo", "acme", "chroot", "alphabetical"


class EchoEngine(ExternalEngine):
    """A server in this process that answers every request with its model's name."""

    def __init__(self, name: str, kind: EngineKind) -> None:
        self._reserved = ReservedPort()
        endpoint = Endpoint(LOOPBACK, self._reserved.number)
        super().__init__(name, endpoint, kind)
        self._server: asyncio.Server | None = None

    async def wait_ready(self, timeout_s: float) -> None:
        self._reserved.close()
        self._server = await asyncio.start_server(self._answer, LOOPBACK, self.endpoint.port)

    async def stop(self, grace_s: float) -> None:
        if self._server is not None:
            self._server.close()
        await super().stop(grace_s)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().splitlines() if b"content-length:" in line), 0
        )
        await reader.readexactly(length)
        body = json.dumps({"choices": [{"text": self._name}]}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n")
        writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()


class EchoHost:
    """Starts `EchoEngine`s."""

    async def start(self, order: EngineOrder) -> EchoEngine:
        return EchoEngine(order.name, order.placement.recipe.engine)


class AcmeProbe:
    """Finds one card."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def inventory(self) -> Inventory:
        card = Device(
            DeviceId("ACME-1"), DeviceKind.GPU, "Acme One", 0, 24 * GIB, vendor=Vendor(ACME), runtime_name="7"
        )
        reading = Reading(card.id, self._clock.now(), used_bytes=0, free_bytes=24 * GIB)
        return Inventory(InventorySource(ACME), (card,), {card.id: reading})


class ChrootLauncher:
    """Starts engines on the host, and tells them the image."""

    def __init__(self, program: str, image: str) -> None:
        self._image = image

    async def launch(self, plan: LaunchPlan, output_fd: int) -> ChildProcess:
        argv = ("env", f"IMAGE={self._image}", *plan.argv)
        return await HostLauncher().launch(LaunchPlan(plan.name, argv, plan.port), output_fd)


def by_name(victim: Victim) -> float:
    """The first in the alphabet goes first."""
    return float(ord(victim.model[0]))


def add_engine_kind(patch: pytest.MonkeyPatch) -> EngineKind:
    kind = _add_member(patch, EngineKind, ECHO)
    traits = EngineTraits(
        PlanMethod.WHOLE, ModelFormat.NOTHING, keys=frozenset(["memory", "model", "gpus"]), needs="memory"
    )
    patch.setitem(_mutable(engine_kinds.ENGINE_TRAITS), kind, traits)
    patch.setitem(_mutable(hosts.HOSTS), kind, lambda given: EchoHost())
    return kind


def add_vendor(patch: pytest.MonkeyPatch) -> Vendor:
    vendor = _add_member(patch, Vendor, ACME)
    _add_member(patch, InventorySource, ACME)
    traits = VendorTraits(
        "acme", lambda names: {"ACME_VISIBLE": ",".join(names)}, hidden={"ACME_VISIBLE": "none"}
    )
    patch.setitem(_mutable(vendors.VENDOR_TRAITS), vendor, traits)
    # Before the others: this machine may have cards of theirs.
    patch.setattr(inventory, "PROBES", {vendor: AcmeProbe, **inventory.PROBES})
    patch.setitem(
        _mutable(cards.CARD_OPTIONS),
        vendor,
        lambda model, cards, style, rootless: (f"--acme={card.runtime_name}" for card in cards),
    )
    return vendor


def add_launcher(patch: pytest.MonkeyPatch) -> LauncherKind:
    kind = _add_member(patch, LauncherKind, CHROOT)
    patch.setitem(_mutable(launching.LAUNCHER_TRAITS), kind, LauncherTraits(("env",)))
    patch.setitem(_mutable(launchers.LAUNCHERS), kind, ChrootLauncher)
    return kind


def add_policy(patch: pytest.MonkeyPatch) -> str:
    patch.setitem(_mutable(policy.POLICIES), ALPHABETICAL, by_name)
    return ALPHABETICAL


def _add_member(patch: pytest.MonkeyPatch, kind: type[StrEnum], value: str) -> Any:
    """Add a member to an enumeration, as a line in its class would."""
    member = str.__new__(kind, value)
    member._name_, member._value_ = value.upper(), value
    patch.setattr(kind, "_member_names_", [*kind._member_names_, member._name_])
    patch.setitem(kind._member_map_, member._name_, member)
    patch.setitem(_mutable(kind._value2member_map_), value, member)
    return member


def _mutable(registry: Any) -> Any:
    return registry


if __name__ == "__main__":
    lasting = pytest.MonkeyPatch()
    for add in (add_engine_kind, add_vendor, add_launcher, add_policy):
        add(lasting)
    sys.exit(main())
