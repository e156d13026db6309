"""The agent: what it answers to each method."""

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cotenant import __version__
from cotenant.agent.card_sharing import CardSharing
from cotenant.agent.engines import AgentEngines
from cotenant.agent.events import EventLog
from cotenant.agent.files import FileWatch, statuses
from cotenant.agent.gate import Gate
from cotenant.agent.installs import Installer
from cotenant.agent.lease import Epoch, Lease
from cotenant.agent.logs import read_log
from cotenant.agent.pulls import Puller
from cotenant.agent.readings import Readings
from cotenant.agent.warming import Warming
from cotenant.clock import Clock
from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.domain.devices import ComputeMode, DeviceId, Inventory
from cotenant.domain.engines import EngineBuild, FoundBuilds
from cotenant.domain.errors import BadRequest, BadSetting, CotenantError
from cotenant.domain.nodes import WrongProtocol
from cotenant.domain.units import format_duration
from cotenant.engines.hosts import EngineHosts, HostInputs
from cotenant.engines.llama_cpp.builds import discover, survey
from cotenant.engines.process.log_folder import LogFolder
from cotenant.hardware.gpus.inventory import probe
from cotenant.hardware.model_cache.load_progress import loaded_bytes
from cotenant.hardware.process_memory import ProbeMeter
from cotenant.interfaces import GpuProbe
from cotenant.model_parts import part_paths
from cotenant.nodes import file_messages, messages, protocol
from cotenant.nodes.messages import PROTOCOL, Hello, HelloAnswer, Identity, Nothing
from cotenant.nodes.protocol import Json, Method, from_json, to_json

_LONGEST_POLL_S: Final = 60.0
_MEASURED_WITHIN_S: Final = 4.0

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How an agent is started: for one `fleet`, with all that it keeps in `state_dir`.

    `name` is what people call the machine. `llama_server` is the operator's program. `problems` are what
    was wrong at the start, in sentences. `examine` checks the machine, with that program, in a thread.
    """

    fleet: str
    name: str
    state_dir: Path
    llama_server: Path | None = None
    problems: tuple[str, ...] = ()
    examine: Callable[[Path | None], Mapping[str, Any]] | None = None


class Agent:
    """One machine of a fleet: its devices by `probe`, its engines, its gate and its lease."""

    def __init__(self, options: AgentOptions, probe: GpuProbe, clock: Clock, found: Inventory) -> None:
        self._options = options
        self._found = found
        self._clock = clock
        self.lease = Lease(options.state_dir / "lease")
        self._epoch = Epoch(options.state_dir / "epoch")
        self._events = EventLog()
        self._secrets: frozenset[str] = frozenset()
        self._logs = LogFolder(options.state_dir / "logs", machine=options.name)
        self._inputs = HostInputs(
            self._logs,
            ProbeMeter(probe, clock),
            exclusive=_exclusive(found),
            llama_server=options.llama_server,
            cuda_version=found.cuda_version,
            secrets=lambda: self._secrets,
            lease=self.lease.path,
        )
        self._hosts = EngineHosts(self._inputs)
        # What sleeps holds memory that only the daemon's own machine can ask back.
        self._hosts.forbid_sleep()
        self.gate = Gate(lambda: not self.lease.left_s)
        self._sharing = CardSharing(options.state_dir, lambda: self.readings.engine_changed())
        self.engines = AgentEngines(
            self._hosts, self.gate, self._events, self._sharing.environment, why_over=self._why_over
        )
        self.readings = Readings(probe, clock, self.engines, self._events)
        self._files_seen = FileWatch(clock, self._events)
        self.engines.changed = self._engine_changed
        self.readings.admissions = self._sharing.admissions
        self.engines.ended = self._engine_ended
        self._builds: asyncio.Task[tuple[EngineBuild, ...]] | None = None
        self._renewed = asyncio.Event()
        self._installer = Installer(options.name, self._events, self._forget_builds)
        self._warming = Warming(clock, self._events, self._why_over, self._files_seen.changed)
        self._puller = Puller(options.name, self._events, self._files_seen.changed)
        handlers: tuple[tuple[Method[Any, Any], Callable[[Any], Awaitable[Any]]], ...] = (
            (protocol.HELLO, self._hello),
            (protocol.RENEW, self._renew),
            (protocol.SHARE_CARDS, self._share_cards),
            (protocol.START, self._start),
            (protocol.AWAIT_READY, self._await_ready),
            (protocol.STOP, self._stop),
            (protocol.RELEASE, self._release),
            (protocol.POLL, self._poll),
            (protocol.BUSY_SLOTS, self._busy_slots),
            (protocol.LOAD_PROGRESS, self._load_progress),
            (protocol.LOG, self._log),
            (protocol.FILES, self._files),
            (protocol.WATCH_FILES, self._watch_files),
            (protocol.WARM_BUDGET, self._warm_budget),
            (protocol.WARM, self._warm),
            (protocol.STOP_WARMING, self._stop_warming),
            (protocol.FORGET_FILES, self._forget_files),
            (protocol.PULL, self._pull),
            (protocol.BUILDS, self._list_builds),
            (protocol.INSTALL_ENGINE, self._install_engine),
            (protocol.DOCTOR, self._doctor),
        )
        self._methods = {method.name: (method, handler) for method, handler in handlers}

    async def answer(self, method: str, params: object) -> Json:
        """Return the result of a method. Raises CotenantError."""
        if method not in self._methods:
            known = ", ".join(sorted(self._methods))
            raise BadRequest(f"an agent has no method {method!r}", hint=f"It has {known}.")
        if method == protocol.HELLO.name:
            self._check_protocol(params)
        kind, handler = self._methods[method]
        return to_json(await handler(from_json(kind.params, params)))

    async def run(self) -> None:
        """Measure the devices, and end the engines when the lease is over, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            # Before a daemon asks: it takes a second.
            tasks.create_task(self._found_builds())
            tasks.create_task(self.readings.run())
            tasks.create_task(self._files_seen.run())
            tasks.create_task(self._end_with_lease())

    async def close(self) -> None:
        """End all engines, and let nobody in."""
        await self.engines.end_all("its agent was stopped")
        await self._sharing.close()
        self.lease.end()
        self.gate.close()

    async def _end_with_lease(self) -> None:
        while True:
            # Looked at anew after the wait: it may have been extended, or the machine may have slept.
            await asyncio.sleep(self.lease.left_s)
            if not self.lease.left_s:
                if len(self.engines):
                    _LOG.warning("%d engines are ended: %s", len(self.engines), self._why_over())
                    await self.engines.end_all(self._why_over() or "")
                self._renewed.clear()
                await self._renewed.wait()

    def _why_over(self) -> str | None:
        if self.lease.left_s:
            return None
        return f"no daemon has renewed its lease of {format_duration(self.lease.lease_s)}"

    def _check_protocol(self, params: object) -> None:
        given = params if isinstance(params, dict) else {}
        if given.get("protocol") != PROTOCOL:
            raise WrongProtocol(
                f"the agent of {self._options.name} is Cotenant {__version__} (protocol {PROTOCOL}), the "
                f"daemon is {given.get('version', 'of an unknown version')} (protocol "
                f"{given.get('protocol', 'unknown')})",
                hint="Install the same version on all machines of a fleet.",
            )

    async def _hello(self, asked: Hello) -> HelloAnswer:
        if asked.fleet != self._options.fleet:
            raise BadSetting(
                f"this agent is of the fleet {self._options.fleet!r}, the daemon of {asked.fleet!r}",
                hint="An agent serves one fleet; another one may run next to it.",
            )
        self._epoch.obey(asked.epoch)
        self.lease.lease_s = asked.lease_s
        self._secrets = asked.secrets
        self._take_llama_server(asked.llama_server)
        if asked.gate is not None and (problem := await self._open_gate(asked.gate)) is not None:
            _LOG.warning("the gate stays as it was: %s", problem)
        # Engines may have ended that the daemon hears of only now, with an agent before this one.
        self.readings.engine_ended()
        seq, reading, builds = self._events.last, await self._reading(), await self._found_builds()
        return HelloAnswer(
            Identity(_machine_id(), _boot_id(), self._options.fleet, self._options.name),
            __version__,
            PROTOCOL,
            reading,
            tuple(self.engines),
            builds,
            seq,
            self.lease.stamp(),
            self.lease.left_s,
            self.gate.address,
            time.time(),
            self._options.problems,
            self.engines.ended_of_late(),
            await asyncio.to_thread(self._logs.found),
        )

    def _take_llama_server(self, of_daemon: Path | None) -> None:
        """Use the daemon's program if it is here, too, and this machine names none of its own."""
        there = of_daemon if of_daemon is not None and shutil.which(of_daemon) else None
        wanted = self._options.llama_server or there
        if wanted != self._inputs.llama_server:
            self._inputs.llama_server = wanted
            self._forget_builds()

    async def _reading(self) -> messages.ReadingTaken:
        """Measure now or, where a driver hangs, return what was measured last: engines run all the same."""
        try:
            async with asyncio.timeout(_MEASURED_WITHIN_S):
                return await self.readings.measure()
        except TimeoutError:
            return self.readings.last or messages.ReadingTaken(self._found)

    async def _renew(self, asked: messages.Renew) -> messages.Stamp:
        self._epoch.obey(asked.epoch)
        if asked.lease_s is not None:
            self.lease.lease_s = asked.lease_s
        self.lease.renew(asked.stamp)
        self._renewed.set()
        problem = None if asked.gate is None else await self._open_gate(asked.gate)
        return messages.Stamp(self.lease.stamp(), self.lease.left_s, time.time(), self.gate.address, problem)

    async def _open_gate(self, settings: messages.GateSettings) -> str | None:
        """Let requests in there; say why the gate stays as it was. Raises what the first `Gate.open` does."""
        try:
            await self.gate.open(settings)
        except CotenantError as error:
            if self.gate.address is None:
                raise
            return error.message
        return None

    async def _share_cards(self, asked: messages.ShareCards) -> Nothing:
        self._epoch.obey(asked.epoch)
        await self._sharing.share(asked)
        return Nothing()

    def _engine_changed(self) -> None:
        self.readings.engine_changed()
        self._files_seen.changed()

    def _engine_ended(self, id_: str) -> None:
        self._sharing.ended(id_)
        self.readings.engine_ended()

    async def _start(self, asked: messages.Start) -> messages.EngineStatus:
        self._epoch.obey(asked.epoch)
        self.lease.check()
        return await self.engines.start(asked.id, asked.order)

    async def _await_ready(self, asked: messages.AwaitReady) -> Nothing:
        self._epoch.obey(asked.epoch)
        self.engines.await_ready(asked.id, asked.timeout_s)
        return Nothing()

    async def _stop(self, asked: messages.Stop) -> Nothing:
        self._epoch.obey(asked.epoch)
        self.engines.stop(asked.id, asked.grace_s)
        return Nothing()

    async def _release(self, asked: messages.Release) -> Nothing:
        self._epoch.obey(asked.epoch)
        await self.engines.end_all("the daemon was stopped")
        self.lease.end()
        return Nothing()

    async def _poll(self, asked: messages.Poll) -> messages.Events:
        return await self._events.after(asked.after, min(asked.wait_s, _LONGEST_POLL_S), self.lease.stamp)

    async def _busy_slots(self, asked: messages.OfEngine) -> messages.BusySlots:
        engine = self.engines.engine(asked.id)
        return messages.BusySlots(None if engine is None else await engine.busy_slots())

    async def _load_progress(self, asked: messages.OfEngine) -> messages.LoadProgress:
        engine, order = self.engines.engine(asked.id), self.engines.order(asked.id)
        if engine is None or order is None:
            return messages.LoadProgress(None, None)
        files = () if order.model_path is None else part_paths(order.model_path)
        pid = engine.pid
        try:
            seen = None if pid is None else await asyncio.to_thread(loaded_bytes, pid, files)
        except OSError:  # a file was deleted during the load
            seen = None
        if seen is None:
            return messages.LoadProgress(None, None, engine.problem)
        return messages.LoadProgress(seen.read_bytes, seen.total_bytes, engine.problem)

    async def _log(self, asked: file_messages.LogPart) -> file_messages.LogBytes:
        path = self._logs.latest(asked.name)
        return await asyncio.to_thread(read_log, path, asked.offset, asked.limit_bytes)

    async def _files(self, asked: file_messages.Paths) -> file_messages.Files:
        return file_messages.Files(await run_in_detached_thread(lambda: statuses(asked.paths)))

    async def _watch_files(self, asked: file_messages.WatchFiles) -> Nothing:
        self._epoch.obey(asked.epoch)
        self._files_seen.watch(asked.paths)
        return Nothing()

    async def _warm_budget(self, asked: file_messages.AskWarmBudget) -> file_messages.WarmBudget:
        return await self._warming.budget(asked.limit_bytes)

    async def _warm(self, asked: file_messages.Warm) -> Nothing:
        self._epoch.obey(asked.epoch)
        await self._warming.begin(asked)
        return Nothing()

    async def _stop_warming(self, asked: file_messages.StopWarming) -> Nothing:
        self._epoch.obey(asked.epoch)
        await self._warming.stop(asked.why)
        return Nothing()

    async def _forget_files(self, asked: file_messages.ForgetFiles) -> Nothing:
        self._epoch.obey(asked.epoch)
        await self._warming.forget(asked.paths)
        return Nothing()

    async def _pull(self, asked: file_messages.Pull) -> Nothing:
        self._epoch.obey(asked.epoch)
        self._puller.pull(asked)
        return Nothing()

    async def _list_builds(self, _: Nothing) -> FoundBuilds:
        inventory = await self._measure_own()
        self._forget_builds()
        return await asyncio.to_thread(survey, self._inputs.llama_server, inventory)

    async def _install_engine(self, asked: messages.InstallEngine) -> messages.InstallBegun:
        self._epoch.obey(asked.epoch)
        return await self._installer.begin(asked.order, await self._measure_own())

    async def _measure_own(self) -> Inventory:
        """Measure the machine's own devices: described ones do not decide which build can run here."""
        return await run_in_detached_thread(lambda: probe(None, self._clock).inventory())

    def _forget_builds(self) -> None:
        self._builds = None

    async def _doctor(self, _: Nothing) -> messages.DoctorReport:
        examine, program = self._options.examine, self._inputs.llama_server
        if examine is None:
            raise BadRequest("this agent has no doctor")
        return messages.DoctorReport(await run_in_detached_thread(lambda: examine(program)))

    async def _found_builds(self) -> tuple[EngineBuild, ...]:
        """Return the builds that were found last; they are looked for once, which takes a second."""
        if self._builds is None:
            self._builds = asyncio.create_task(self._look_for_builds())
        return await asyncio.shield(self._builds)

    async def _look_for_builds(self) -> tuple[EngineBuild, ...]:
        try:
            return (await asyncio.to_thread(discover, self._inputs.llama_server)).all
        except CotenantError as error:
            _LOG.warning("%s", error.message)
            return ()


def _exclusive(inventory: Inventory) -> frozenset[DeviceId]:
    mode = ComputeMode.EXCLUSIVE_PROCESS
    return frozenset(each.device_id for each in inventory.readings.values() if each.compute_mode is mode)


def _machine_id() -> str:
    """Return what no other machine has: in a container, where it may be the image's, a variable says it."""
    if given := os.environ.get("COTENANT_MACHINE_ID"):
        return given
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            found = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if found:
            return found
    return os.uname().nodename


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
