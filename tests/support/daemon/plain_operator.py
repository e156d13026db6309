"""An operator over plain values, for what shows and orders."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cotenant.domain.decisions import Decision, DeviceStatus, Histogram, ModelStatus, SlotStatus, WarmStatus
from cotenant.domain.errors import CotenantError, UnknownModel
from cotenant.domain.fragmentation import Defragmentation, Fragmentation
from cotenant.domain.units import GIB
from cotenant.interfaces import RemoteLog

CARD = DeviceStatus(
    "GPU-a",
    0,
    "RTX 3090",
    24 * GIB,
    10 * GIB,
    claimed_bytes=8 * GIB,
    foreign_bytes=6 * GIB,
    plannable_bytes=9 * GIB,
)
HOST = DeviceStatus("host", None, "host RAM", 64 * GIB, None, 0, None, 0)


class PlainOperator:
    """Obeys at once; `fault` is what orders raise, `gate` what loading waits for."""

    def __init__(self, *statuses: ModelStatus, devices: Sequence[DeviceStatus] = (CARD, HOST)) -> None:
        self.models = {status.name: status for status in statuses}
        self.cards = tuple(devices)
        self.calls: list[str] = []
        self.fragmented = Fragmentation()
        self.proposed = Defragmentation(None, True)
        self.kept: WarmStatus | None = None
        self.slots: SlotStatus | None = None
        self.times: dict[str, Histogram] = {}
        self.told: list[Decision] = []
        self.logs: dict[str, Path] = {}
        self.remote_logs: dict[str, RemoteLog] = {}
        self.fault: CotenantError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._readers: set[asyncio.Queue[Decision]] = set()

    @property
    def readers(self) -> int:
        return len(self._readers)

    def tell(self, decision: Decision) -> None:
        self.told.append(decision)
        for reader in self._readers:
            if reader.full():
                reader.get_nowait()
            reader.put_nowait(decision)

    def statuses(self) -> Sequence[ModelStatus]:
        self.calls.append("statuses")
        return tuple(self.models.values())

    def devices(self) -> Sequence[DeviceStatus]:
        self.calls.append("devices")
        return self.cards

    async def fragmentation(self) -> Fragmentation:
        return self.fragmented

    def decision_times(self) -> Mapping[str, Histogram]:
        return self.times

    async def defragmentation(self, name: str | None = None, *, unasked: bool = False) -> Defragmentation:
        if name is not None:
            self._check(name)
        return self.proposed

    async def defragment(self, name: str | None = None) -> Defragmentation:
        await self._obey("defragment", name or "")
        return self.proposed

    def warm(self) -> WarmStatus | None:
        return self.kept

    def saved_slots(self) -> SlotStatus | None:
        return self.slots

    def why(self, name: str) -> Sequence[Decision]:
        self._check(name)
        return [decision for decision in self.told if decision.model == name]

    def recent(self) -> Sequence[Decision]:
        return tuple(self.told)

    def log_path(self, name: str) -> Path | None:
        self._check(name)
        return self.logs.get(name)

    def remote_log(self, name: str) -> RemoteLog | None:
        self._check(name)
        return self.remote_logs.get(name)

    async def load(self, name: str) -> None:
        await self._obey("load", name)
        self._change(name, state="ready")

    async def unload(self, name: str) -> None:
        await self._obey("unload", name)
        self._change(name, state="unloaded")

    def pin(self, name: str, pinned: bool) -> None:
        self._check(name)
        self._change(name, pinned=pinned)

    async def reload(self) -> Sequence[str]:
        await self._obey("reload")
        return ("llama: keep_alive 5m -> 10m",)

    async def decisions(self) -> AsyncIterator[Decision]:
        reader: asyncio.Queue[Decision] = asyncio.Queue(maxsize=16)
        self._readers.add(reader)
        try:
            while True:
                yield await reader.get()
        finally:
            self._readers.discard(reader)

    async def _obey(self, order: str, name: str = "") -> None:
        if name:
            self._check(name)
        self.calls.append(f"{order} {name}".strip())
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault

    def _check(self, name: str) -> None:
        if name not in self.models:
            raise UnknownModel(f"no {name}")

    def _change(self, name: str, **facts: object) -> None:
        self.models[name] = replace(self.models[name], **facts)  # type: ignore[arg-type]
