"""Engines that are server processes of ours: starts them, waits until they are ready, stops them."""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from cotenant.domain.devices import Device
from cotenant.domain.engine_arguments import refused_argument
from cotenant.domain.engines import LOG_MARK, Endpoint, EngineBuild, EngineEnd, EngineReport
from cotenant.domain.errors import BadRecipe, EngineError, EngineLoadFailed, EngineLoadTimeout
from cotenant.domain.exit_causes import Cause, Diagnosis
from cotenant.domain.units import MIB, format_duration
from cotenant.engines.base.health import HealthRules, first_of, until_hung
from cotenant.engines.base.host_inputs import HostInputs
from cotenant.engines.diagnosis.diagnosis import diagnose
from cotenant.engines.diagnosis.remedies import REMEDIES
from cotenant.engines.launch.container import RunAs
from cotenant.engines.launch.launchers import launch
from cotenant.engines.launch.plan import LaunchPlan, visible_devices
from cotenant.engines.process.activity import Activity
from cotenant.engines.process.log_folder import RotatingLog
from cotenant.engines.process.ports import LOOPBACK, ReservedPort
from cotenant.engines.process.process import ChildProcess
from cotenant.http.client import probe
from cotenant.http.listeners import listener_inode, listening_sockets
from cotenant.interfaces import EngineOrder

_FIRST_POLL_S: Final = 0.002
_LISTEN_POLL_S: Final = 0.004
"""How often to look whether it listens, which takes 10 µs."""
_LAST_POLL_S: Final = 0.02
_POLL_GROWTH: Final = 1.5
_HEALTH_TIMEOUT_S: Final = 5.0
_EVIDENCE_BYTES: Final = MIB // 4
_LAST_LOG_BYTES: Final = MIB // 8
"""How much of the log of an engine that was ready is read: earlier lines are about other requests."""
_ROTATE_EVERY_S: Final = 0.25
_NO_HEALTH_STATUSES: Final = frozenset({400, 404, 405, 410, 501})
"""What a server answers that has no such path; one that is loading answers 503, or nothing."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Started:
    """A server process that was just started for an order, with its port and log.

    `exclusive` says that it runs on a card which admits one process at a time.
    """

    order: EngineOrder
    plan: LaunchPlan
    process: ChildProcess
    port: ReservedPort
    log: RotatingLog
    exclusive: bool = False
    health: HealthRules = field(default_factory=HealthRules)
    secrets: Callable[[], frozenset[str]] = frozenset


class ServerHost:
    """Starts servers as processes of ours."""

    def __init__(self, inputs: HostInputs) -> None:
        self._inputs = inputs

    async def _start(self, order: EngineOrder, plan_for: Callable[[int], LaunchPlan]) -> Started:
        """Start what `plan_for` returns for a port; it is called in a thread.

        Raises BadRecipe, EngineMissing or EngineLoadFailed.
        """
        refused = refused_argument(order.placement.recipe.engine, order.args, order.env)
        if refused is not None:
            raise BadRecipe(f"{order.name}: {refused.word} {refused.why}", hint=refused.hint)
        port = ReservedPort()
        try:
            plan = (await asyncio.to_thread(plan_for, port.number)).with_key()
            plan = replace(plan, withheld=self._inputs.secrets(), lease=self._inputs.lease)
            process, log = await self._launch(plan, port)
        except BaseException:
            port.close()
            raise
        exclusive = any(device.id in self._inputs.exclusive for device in visible_devices(order))
        return Started(order, plan, process, port, log, exclusive, self._inputs.health)

    async def _launch(self, plan: LaunchPlan, port: ReservedPort) -> tuple[ChildProcess, RotatingLog]:
        process: ChildProcess | None = None
        launching = True

        def unused() -> bool:
            return process.returncode is not None if process is not None else not launching

        try:
            log = self._inputs.logs.log(plan.name, unused)
            output = log.open(_header(plan.devices))
        except OSError as error:
            launching = False
            raise EngineLoadFailed(
                f"the log of {plan.name} cannot be written: {error.strerror}",
                hint="Choose another folder for logs.",
            ) from error
        try:
            if not plan.shares_port:
                port.let_go()
            elif plan.launch.image is not None:
                port.admit(RunAs.of_daemon().uid)
            process = await launch(plan, output)
        except OSError as error:
            why = f"{plan.name} could not be loaded: {plan.argv[0]}: {error.strerror}"
            log.add(f"{LOG_MARK}{why}\n".encode())
            raise EngineLoadFailed(why) from error
        except EngineError as error:
            log.add(f"{LOG_MARK}{error.message}\n".encode())
            raise
        finally:
            launching = False
            os.close(output)
        return process, log


def _header(devices: Sequence[Device]) -> bytes:
    """Return the first line of a log: which GPU of the driver's is which of the engine's."""
    named = (
        f"{device.vendor.traits.backend.upper()}{number} is {device.label}"
        for number, device in enumerate(devices)
        if device.vendor is not None
    )
    return f"{LOG_MARK}in this log {', '.join(named)}\n".encode() if devices else b""


class ServerEngine:
    """One server process that serves one model.

    Requests to it must name `model`; None stands for the model's own name. `endpoint` is where it listens,
    known before it is ready, `build` is its program, and `order` what it was started for. Kinds of engines
    override methods of this class.
    """

    _dies_with_status_0 = False
    """Whether a failure may end with status 0: its log is read then."""

    _queue_path: str | None = None
    """A path that it answers only while its queue moves, where its health path says less."""

    NO_HEALTH_AFTER_S = 15.0
    """For how long its health path may be unknown to it before the load counts as failed."""

    def __init__(self, started: Started, build: EngineBuild, *, model: str | None = None) -> None:
        self.order = started.order
        self._name = started.order.name
        self._health_path = started.plan.health_path
        self.build = build
        self._process = started.process
        self._port = started.port
        self._log = started.log
        self._exclusive = started.exclusive
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._hung: str | None = None
        self._in_container = started.plan.launch.image is not None
        self._health_rules = started.health
        self._health_task: asyncio.Task[None] | None = None
        self._health_problem: EngineError | None = None
        self.problem: str | None = None
        port, key = started.port.number, started.plan.key
        self.endpoint = Endpoint(LOOPBACK, port, model=model, key=key, kind=build.kind)
        self._monitor_task = asyncio.create_task(self._monitor())

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """The file with its output."""
        return self._log.path

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.returncode is not None

    async def wait_ready(self, timeout_s: float) -> None:
        """Return within milliseconds of its first answer.

        Raises EngineLoadFailed, EngineLoadTimeout or, if it does not use its planned GPUs, EngineLacksDevice;
        the process has ended by then.
        """
        self._health_problem = None
        try:
            async with asyncio.timeout(timeout_s):
                await first_of(self._process.wait(), self._healthy())
                if self._health_problem is not None:
                    raise self._health_problem
                if not self.ended:
                    await self._check()
        except TimeoutError:
            await self.stop(0)
            answers = f": {self.problem}" if self.problem else ""
            raise EngineLoadTimeout(
                f"{self._name} was not ready within {format_duration(timeout_s)}{answers}",
                hint=self._advice(REMEDIES[Cause.LOAD_TIMEOUT]),
            ) from None
        except EngineError:
            await self.stop(0)
            raise
        returncode = self._process.returncode
        if returncode is not None:
            await self.stop(0)
            found = await asyncio.to_thread(self._diagnose, returncode, was_ready=False)
            raise EngineLoadFailed(
                f"{self._name} could not be loaded: {found.sentence}",
                hint=self._advice(found.remedy),
                cause=found.cause,
                lacking=found.lacking,
            )
        if self._health_task is None or self._health_task.done():
            self._health_task = asyncio.create_task(self._end_if_hung())

    async def wait_exit(self) -> EngineEnd:
        """Return when the process has ended, with how and why."""
        returncode = await self._process.wait()
        if self._hung is not None:
            why = f"{self._name} was killed because it hung: {self._hung}"
            return EngineEnd(f"{why}. {self._advice(REMEDIES[Cause.HUNG])}", Cause.HUNG)
        if self._stopping:
            return EngineEnd(f"{self._name} was stopped")
        if returncode != 0 or self._dies_with_status_0:
            found = await asyncio.to_thread(self._diagnose, returncode, was_ready=True)
            if returncode != 0 or found.cause is not Cause.UNKNOWN:
                why = f"{self._name} died: {found.sentence}. {self._advice(found.remedy)}"
                return EngineEnd(why, found.cause)
        return EngineEnd(f"{self._name} ended by itself", Cause.UNKNOWN)

    async def busy_slots(self) -> int | None:
        """Count the slots that are generating; None if unknown."""
        return None

    def report(self) -> EngineReport | None:
        """Return the bytes that the engine reports to have taken; None if it does not report them."""
        return None

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, kill it after `grace_s`, and return when the process group has ended."""
        self._stopping = self._stopping or not self.ended
        if not await self._process.stop(grace_s):
            what = "%s (process group %d) was killed but has not ended: a driver still holds it"
            _log.error(what, self._name, self.pid)
        await asyncio.wait({self._monitor_task})

    async def _check(self) -> None:
        """Check that the engine runs as planned. Raises EngineError."""

    def _diagnose(self, returncode: int, *, was_ready: bool) -> Diagnosis:
        """Find the cause of the end in the log. It takes up to 0.2 s: call it in a thread."""
        log = self._log.read(_LAST_LOG_BYTES if was_ready else _EVIDENCE_BYTES, from_end=True)
        devices = visible_devices(self.order) or self.order.planned_gpus
        return diagnose(returncode, log, was_ready=was_ready, exclusive=self._exclusive, devices=devices)

    async def _healthy(self) -> None:
        """Return when it is ready, or never will be: `_health_problem` then says why."""
        pause_s = _FIRST_POLL_S
        refused_since: float | None = None
        while True:
            listens = await self._listens()
            if listens:
                answer = await probe(self.endpoint, self._health_path, timeout_s=_HEALTH_TIMEOUT_S)
                if answer is not None:
                    self.problem = f"it answers {answer.status} at {self._health_path}"
                if answer is not None and answer.status == 200:
                    return
                refused = answer is not None and answer.status in _NO_HEALTH_STATUSES
                refused_since = (refused_since or self._loop.time()) if refused else None
                if refused_since is not None and self._loop.time() - refused_since >= self.NO_HEALTH_AFTER_S:
                    hint = f"Set `health:` to a path that answers 200 once it serves. {self._advice('')}"
                    why = f"{self._name} could not be loaded: {self.problem}"
                    self._health_problem = EngineLoadFailed(why, hint=hint, cause=Cause.BAD_ARGUMENT)
            if self._health_problem is not None:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * _POLL_GROWTH, _LAST_POLL_S if listens else _LISTEN_POLL_S)

    async def _end_if_hung(self) -> None:
        """Kill it once it hangs; any answer, of whatever status, shows that it does not.

        What its queue must answer, it is given the time of one that computes for, whatever its processes do.
        """

        async def answers(path: str) -> bool:
            found = await probe(self.endpoint, path, timeout_s=self._health_rules.timeout_s)
            return found is not None or self._stopping

        async def watch(path: str, activity: Callable[[], Activity | None]) -> None:
            self._hung = await until_hung(partial(answers, path), activity, self._health_rules)

        watches = [watch(self._health_path, self._activity)]
        if self._queue_path is not None:
            watches.append(watch(self._queue_path, lambda: None))
        await first_of(*watches)
        _log.error("%s hangs: %s; it is killed", self._name, self._hung)
        await self._process.stop(0)

    def _activity(self) -> Activity | None:
        """Return what its processes do; None in a container, whose processes are not below ours."""
        return None if self._in_container else Activity.of(self.pid)

    async def _listens(self) -> bool:
        """Whether the engine, and nobody else, listens on its port; nothing is sent there before that."""
        known = self.endpoint.listeners
        inode = listener_inode(LOOPBACK, self._port.number)
        if inode is None or inode in known:
            return inode is not None
        sockets = dict(await asyncio.to_thread(lambda: [*listening_sockets(self._port.number)]))
        uid = sockets.get(inode)
        if uid is None:
            return False
        own = await asyncio.to_thread(
            lambda: frozenset(each for each in sockets if self._process.owns_socket(each, sockets[each]))
        )
        if inode in own:
            self.endpoint = replace(self.endpoint, listeners=own)
            return True
        if inode == listener_inode(LOOPBACK, self._port.number) and not self.ended:
            why = f"another process, of user {uid}, listens on its port {self._port.number}"
            self._health_problem = EngineLoadFailed(
                f"{self._name} could not be loaded: {why}",
                hint=REMEDIES[Cause.PORT_IN_USE],
                cause=Cause.PORT_IN_USE,
            )
        return False

    async def _monitor(self) -> None:
        """Rotate the log while the process runs, then release the port."""
        try:
            pause_s = _FIRST_POLL_S
            while not self.ended:
                exited = asyncio.create_task(self._process.wait())
                await asyncio.wait({exited}, timeout=pause_s)
                exited.cancel()
                pause_s = self._log.next_look_s(pause_s, _ROTATE_EVERY_S)
                if self.endpoint.listeners and not self.ended:
                    # A program may restart its server, or add another.
                    await self._listens()
                try:
                    if self._log.overgrown:
                        await asyncio.to_thread(self._log.rotate)
                except OSError as error:
                    _log.error("the log %s cannot be rotated: %s", self._log.path, error.strerror)
        finally:
            if self._health_task is not None:
                self._health_task.cancel()
            self._port.close()

    def _advice(self, remedy: str) -> str:
        where = f" on {self._log.machine}" if self._log.machine else ""
        return f"{remedy} The engine's log is {self._log.path}{where}.".lstrip()
