"""Engines that share cards through MPS: which ones may, through which daemon, and when that daemon runs."""

import asyncio
import itertools
import logging
import os
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.domain.devices import (
    ComputeMode,
    Device,
    DeviceId,
    DeviceKind,
    Inventory,
    MpsGroup,
    MpsMode,
    MpsTerms,
)
from cotenant.domain.errors import MpsError, MpsFailed
from cotenant.domain.placements import Placement
from cotenant.domain.units import format_count, format_duration
from cotenant.domain.vendors import Vendor
from cotenant.engines.process.process import ChildProcess, guarded
from cotenant.hardware.mps.daemon import MpsDaemon
from cotenant.hardware.mps.directories import PIPE_VARIABLE, MpsDirectories
from cotenant.hardware.mps.discovery import FoundDaemon, find_daemons
from cotenant.hardware.mps.program import find_program, no_program
from cotenant.planning.compute_modes import (
    ANY_NUMBER,
    Admission,
    alone,
    is_mps_server,
    left_out_by_mode,
    through_mps,
)

_LOG = logging.getLogger(__name__)
_UNUSED_S: Final = 5.0
_QUIT_WITHIN_S: Final = 2.0
_FAILED_FOR_S: Final = 60.0
_BROKEN_GONE_WITHIN_S: Final = 30.0
_ALL: Final = "mps"

Wanting = Callable[[Device], int]
"""Returns how many models may use a device."""


@dataclass(frozen=True, slots=True)
class MpsRules:
    """When engines run under MPS, and with what.

    `program` is None if this machine has none; `found` are the daemons that run already.
    """

    mode: MpsMode
    group: MpsGroup
    program: Path | None
    state_dir: Path
    max_loaded: int | None = None
    found: tuple[FoundDaemon, ...] = ()

    @classmethod
    def of_machine(
        cls,
        mode: MpsMode,
        group: MpsGroup,
        max_loaded: int | None,
        state_dir: Path,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Complete the operator's rules with what this machine has; that asks MPS daemons, and takes a while.

        Raises MpsMissing if MPS is required and there is no control program.
        """
        variables = os.environ if environ is None else environ
        program = None if mode is MpsMode.OFF else find_program(variables)
        if program is None and mode is MpsMode.REQUIRED:
            raise no_program(variables)
        found = () if program is None else tuple(find_daemons(program, state_dir, variables))
        return cls(mode, group, program, state_dir, max_loaded, found)


@dataclass(slots=True, eq=False)
class _Group:
    """Cards that one daemon serves, and the engines that use it.

    `users` are the engines, each with the callback that ends it. `broken` are engines of a daemon that has
    died; they must have ended before the next one starts.
    """

    cards: dict[DeviceId, Device]
    found: FoundDaemon | None = None
    daemon: MpsDaemon | None = None
    users: dict[Hashable, Callable[[str], None]] = field(default_factory=dict)
    broken: set[Hashable] = field(default_factory=set)
    cleared: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    watcher: asyncio.Task[None] | None = None
    idle: asyncio.TimerHandle | None = None
    failure: str | None = None

    @property
    def is_settled(self) -> bool:
        """Whether its cards must stay in this group now."""
        return self.daemon is not None or bool(self.users or self.broken or self.failure)


class Sharing:
    """Decides which devices engines share through MPS, and keeps the daemons for it.

    `listeners` are called when the result of `admissions` may have changed. Daemons that
    already run are used, and never stopped.
    """

    def __init__(self, rules: MpsRules) -> None:
        self._rules = rules
        self.listeners: list[Callable[[], None]] = []
        found = rules.found
        self._groups: dict[str, _Group] = {}
        self._adopted = {f"found-{number}": each for number, each in enumerate(found) if not each.problem}
        self._misnumbering = next((each for each in found if each.problem), None)
        self._alone: dict[Hashable, frozenset[DeviceId]] = {}
        self._stops = BackgroundTasks()
        for each in found:
            if each.problem:
                _LOG.warning("the MPS daemon at %s is not used: %s", each.directories.pipe, each.problem)

    def admissions(
        self, inventory: Inventory, ours: Collection[int], wanting: Wanting
    ) -> dict[DeviceId, Admission]:
        """Return how many engines each device admits now; `ours` are processes of our engines."""
        if self._rules.mode is not MpsMode.OFF:
            self._regroup(inventory, ours, wanting)
        return {device.id: self._admission(inventory, device) for device in inventory.devices}

    def warnings(self, inventory: Inventory, ours: Collection[int], wanting: Wanting) -> tuple[str, ...]:
        """Return a sentence for each card that admits one engine at a time though several models may use it.

        The arguments are those of the last call of `admissions`.
        """
        found = []
        for device in inventory.devices:
            reading, count = inventory.reading(device), wanting(device)
            others = tuple(process for process in reading.processes or () if process.pid not in ours)
            admission = self._admission(inventory, device)
            wanted = count > 1 and self._rules.max_loaded != 1 and admission.max_engines == 1
            if wanted and left_out_by_mode(device, reading, others) is None:
                found.append(f"{device.label} is for {count} models, one at a time: {admission.why}")
        return tuple(found)

    async def environment(
        self, engine: Hashable, name: str, terms: MpsTerms, placement: Placement, fail: Callable[[str], None]
    ) -> dict[str, str]:
        """Start the daemon that an engine of a model needs, and return its environment. Raises MpsError.

        `fail` is called with the reason if that daemon dies. Every call is followed by one of `ended`.
        """
        shares = [share for share in placement.used_shares if share.device.kind is not DeviceKind.HOST]
        devices = frozenset(share.device.id for share in shares)
        key = self._group_key(devices)
        if key is None:
            self._alone[engine] = devices
            if self._misnumbering is None or self._rules.mode is MpsMode.OFF:
                return {}
            # Kept away from a daemon that would renumber its cards.
            return {PIPE_VARIABLE: str(self._rules.state_dir / "mps" / "none")}
        group = self._groups[key]
        group.users[engine] = fail
        try:
            directories = await self._ensure_running(group)
        except MpsError as error:
            self._fall_back(group, error)
            raise
        # An engine that lays itself out fits itself to the card.
        margin = None if placement.by_engine else terms.margin_bytes
        ceilings = [] if margin is None else [share.parts.total + margin for share in shares]
        return directories.client_variables(name, ceilings, terms.threads_percent)

    def ended(self, engine: Hashable) -> None:
        """Record that an engine has ended; a daemon without engines is stopped soon after."""
        if self._alone.pop(engine, None) and self._rules.mode is not MpsMode.OFF:
            self._notify()
        for group in self._groups.values():
            group.users.pop(engine, None)
            if engine in group.broken:
                group.broken.discard(engine)
                if not group.broken:
                    group.cleared.set()
            if not group.users and group.daemon is not None and group.idle is None:
                group.idle = asyncio.get_running_loop().call_later(_UNUSED_S, self._stop_unused, group)

    async def close(self) -> None:
        """Stop every daemon that we started; the engines have ended already."""
        for group in self._groups.values():
            if group.idle is not None:
                group.idle.cancel()
        await self._stops.finished()
        await asyncio.gather(*(self._stop(group) for group in self._groups.values()))

    def _admission(self, inventory: Inventory, device: Device) -> Admission:
        exclusive = inventory.reading(device).compute_mode is ComputeMode.EXCLUSIVE_PROCESS
        key = self._group_key(frozenset([device.id]))
        if key is not None:
            return through_mps(device, key)
        return alone(device, *self._why_alone(device)) if exclusive else ANY_NUMBER

    def _why_alone(self, device: Device) -> tuple[str, str]:
        """Return why an exclusive device is not shared, and what other than its compute mode would help."""
        group = next((each for each in self._groups.values() if device.id in each.cards), None)
        if self._rules.mode is MpsMode.OFF:
            return "MPS is off", "set `devices.mps: auto`"
        if self._rules.program is None:
            return "nvidia-cuda-mps-control is not on the PATH", "install it for `devices.mps: auto` to use"
        if group is not None and group.failure is not None:
            return f"MPS could not be started ({group.failure})", "fix that (`cotenant mps logs`)"
        if any(device.id in devices for devices in self._alone.values()):
            return "the engine that already runs on it was started without MPS", "unload that engine"
        return "no other model is to use it", "let another (`gpus:`, `max_loaded:`)"

    def _group_key(self, devices: frozenset[DeviceId]) -> str | None:
        """Return the key of the group whose daemon serves all these devices now, if there is one."""
        if not devices or devices & self._taken():
            return None
        for key, group in self._groups.items():
            if devices <= group.cards.keys() and group.failure is None:
                return key
        return None

    def _taken(self) -> set[DeviceId]:
        """Return the devices whose engine runs without MPS: an exclusive one is closed to MPS servers."""
        return {device for devices in self._alone.values() for device in devices}

    def _regroup(self, inventory: Inventory, ours: Collection[int], wanting: Wanting) -> None:
        """Put the cards to share into groups; groups whose daemon is in use do not change."""
        self._groups = {key: group for key, group in self._groups.items() if group.is_settled}
        settled = {card for group in self._groups.values() for card in group.cards}
        for device in inventory.devices:
            if device.id in settled or not self._should_share(inventory, device, ours, wanting):
                continue
            adopted = next((key for key, each in self._adopted.items() if each.serves(device)), None)
            if adopted is None and self._rules.program is None:
                continue
            by_itself = self._rules.group is MpsGroup.CARD or device.kind is DeviceKind.MIG
            key = adopted or (str(device.id) if by_itself else self._open_key())
            group = self._groups.setdefault(key, _Group({}, self._adopted.get(adopted or "")))
            group.cards[device.id] = device

    def _open_key(self) -> str:
        """Return the key of the group that still takes cards: a running daemon gets no more of them."""
        keys = (_ALL if number == 1 else f"{_ALL}-{number}" for number in itertools.count(1))
        return next(key for key in keys if key not in self._groups or not self._groups[key].is_settled)

    def _should_share(
        self, inventory: Inventory, device: Device, ours: Collection[int], wanting: Wanting
    ) -> bool:
        reading = inventory.reading(device)
        usable = device.vendor is Vendor.NVIDIA and reading.compute_mode is not ComputeMode.PROHIBITED
        if not usable or device.id in self._taken():
            return False
        exclusive = reading.compute_mode is ComputeMode.EXCLUSIVE_PROCESS
        others = [process for process in reading.processes or () if process.pid not in ours]
        served = any(is_mps_server(process) for process in others)
        if exclusive and others and not served:
            # If another process holds one card, a daemon would not start for any of its cards.
            return False
        if self._rules.mode is MpsMode.REQUIRED:
            return True
        if not exclusive or served:
            return exclusive
        return self._rules.max_loaded != 1 and wanting(device) > 1

    async def _ensure_running(self, group: _Group) -> MpsDirectories:
        async with group.lock:
            if group.idle is not None:
                group.idle.cancel()
                group.idle = None
            try:
                async with asyncio.timeout(_BROKEN_GONE_WITHIN_S):
                    if group.broken:
                        await group.cleared.wait()
            except TimeoutError:
                raise MpsFailed(
                    f"{format_count(len(group.broken), 'engine')} of a dead MPS daemon did not end within "
                    f"{format_duration(_BROKEN_GONE_WITHIN_S)}"
                ) from None
            if group.failure is not None:
                raise MpsFailed(group.failure)
            if group.daemon is None:
                group.daemon = await self._start(group)
                group.watcher = asyncio.get_running_loop().create_task(self._watch(group, group.daemon))
            return group.daemon.control.directories

    async def _start(self, group: _Group) -> MpsDaemon:
        if group.found is not None and await asyncio.to_thread(group.found.control.answers):
            _LOG.info("uses the MPS daemon that runs at %s", group.found.directories.pipe)
            return MpsDaemon(group.found.control, group.found.pid)
        self._forget(group)
        if self._rules.program is None:
            raise no_program(os.environ)
        cards = [str(card) for card in group.cards]
        directories = MpsDirectories.of_cards(self._rules.state_dir, cards)
        daemon = await MpsDaemon.start(self._rules.program, directories, cards, _spawn)
        how = "uses the" if daemon.adopted else "started an"
        _LOG.info("%s MPS daemon, pid %s, at %s for %s", how, daemon.pid, directories.pipe, ", ".join(cards))
        return daemon

    async def _watch(self, group: _Group, daemon: MpsDaemon) -> None:
        await daemon.wait_end()
        await daemon.clean()
        self._forget(group)
        group.daemon, group.watcher = None, None
        ending, group.users = group.users, {}
        group.broken = {*ending}
        _LOG.error("the MPS daemon %s has died: %d engines are started again", daemon.pid, len(group.broken))
        if group.broken:
            group.cleared.clear()
        for fail in ending.values():
            fail(f"the MPS daemon of its card, process {daemon.pid}, died")

    def _forget(self, group: _Group) -> None:
        self._adopted = {key: found for key, found in self._adopted.items() if found is not group.found}
        group.found = None

    def _fall_back(self, group: _Group, error: MpsError) -> None:
        """Fall back to one engine per card for a while, if MPS is not required."""
        if self._rules.mode is MpsMode.REQUIRED:
            return
        _LOG.error("MPS cannot be used, so each card runs one engine: %s (%s)", error.message, error.hint)
        group.failure = error.message
        asyncio.get_running_loop().call_later(_FAILED_FOR_S, self._retry, group)
        self._notify()

    def _retry(self, group: _Group) -> None:
        group.failure = None
        self._notify()

    def _notify(self) -> None:
        for listener in self.listeners:
            listener()

    def _stop_unused(self, group: _Group) -> None:
        group.idle = None
        self._stops.start(self._stop(group))

    async def _stop(self, group: _Group) -> None:
        async with group.lock:
            if group.daemon is None or group.users:
                return
            daemon = group.daemon
            if group.watcher is not None:
                group.watcher.cancel()
            await daemon.stop(_QUIT_WITHIN_S)
            group.daemon, group.watcher = None, None
            if not daemon.adopted:
                _LOG.info("stopped the MPS daemon, process %s: no engine uses it", daemon.pid)


def _spawn(argv: Sequence[str], env: Mapping[str, str], output_fd: int) -> ChildProcess:
    return ChildProcess.start(guarded(argv), env=env, output_fd=output_fd)
