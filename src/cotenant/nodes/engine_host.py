"""Starts engines on another machine, as `interfaces.EngineHost`."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.domain.devices import DeviceId, MpsGroup, MpsMode
from cotenant.domain.engines import Endpoint, FoundBuilds, InstallOrder, InstallStage, InstallStep
from cotenant.domain.errors import CotenantError
from cotenant.domain.nodes import FileFetch, NodeUnreachable
from cotenant.interfaces import EngineOrder
from cotenant.nodes.engine import NodeEngine
from cotenant.nodes.file_messages import (
    AskWarmBudget,
    FileStatus,
    ForgetFiles,
    LogBytes,
    LogPart,
    Paths,
    Pull,
    StopWarming,
    Warm,
    WarmBudget,
    WatchFiles,
)
from cotenant.nodes.messages import (
    AgentEvent,
    EngineBecameReady,
    EngineGone,
    EngineLeft,
    EngineStatus,
    FileProgress,
    FilesWarmed,
    GateAddress,
    InstallEngine,
    InstallProgress,
    Nothing,
    ShareCards,
    Start,
)
from cotenant.nodes.protocol import (
    BUILDS,
    DOCTOR,
    FILES,
    FORGET_FILES,
    INSTALL_ENGINE,
    LOG,
    PULL,
    SHARE_CARDS,
    START,
    STOP_WARMING,
    WARM,
    WARM_BUDGET,
    WATCH_FILES,
    Method,
    error_from,
)
from cotenant.nodes.transport import Transport, ask

P = TypeVar("P")
R = TypeVar("R")

_LOOPBACK: Final = "127.0.0.1"
_AGAIN_S: Final = 0.2
_SLOW_S: Final = 120.0
"""For what asks a machine's programs: a first CUDA initialisation on eight GPUs takes seconds."""


class NodeEngineHost:
    """The engines of one machine, ordered by the daemon of an `epoch`.

    Whoever polls the machine's agent gives each event to `take`, and says `lose_all` if the machine is lost.
    After each hello, `use_gate` gets where the agent lets requests in, and `reconcile` its engines. `ca_of`
    returns the file of the authorities that vouch for a certificate, None for the system's. A call has
    `timeout_s`. `fetches` are the files that it fetches for us now.
    """

    def __init__(
        self,
        node: str,
        transport: Transport,
        epoch: int,
        *,
        ca_of: Callable[[Path | None], str | None] = lambda _: None,
        timeout_s: float = 10.0,
        start_within_s: float = 120.0,
    ) -> None:
        self.node = node
        self.gate: GateAddress | None = None
        self._transport = transport
        self._epoch = epoch
        self._ca_of = ca_of
        self._timeout_s = timeout_s
        self._start_within_s = start_within_s
        self._engines: dict[str, NodeEngine] = {}
        self.fetches: dict[Path, FileFetch] = {}
        self._pulls: dict[Path, asyncio.Future[None]] = {}
        self._warming: dict[int, asyncio.Future[FilesWarmed]] = {}
        self._numbers = itertools.count(1)
        self._losses = 0
        self._installs: set[asyncio.Queue[InstallProgress | NodeUnreachable]] = set()
        self._tasks = BackgroundTasks()

    async def start(self, order: EngineOrder) -> NodeEngine:
        """Start loading. Raises what the engine's kind raises there, or NodeUnreachable.

        An order that got no answer is given again, for two minutes: the agent carries it out once. Whatever
        then may have started is stopped as soon as the machine answers.
        """
        engine = self._new(secrets.token_hex(8), order)
        try:
            async with asyncio.timeout(self._start_within_s):
                status = await self._ask_again(
                    START, Start(self._epoch, engine.id, order), lambda: engine.gone
                )
        except TimeoutError:
            self._abandon(engine)
            raise NodeUnreachable(f"{self.node} has not answered whether it starts {order.name}") from None
        except CotenantError as error:
            if isinstance(error, NodeUnreachable):
                self._abandon(engine)
            self._engines.pop(engine.id, None)
            raise
        except asyncio.CancelledError:
            self._abandon(engine)
            raise
        engine.started(status)
        return engine

    def adopt(self, status: EngineStatus) -> NodeEngine:
        """Return an engine that the machine runs already, for an equal order."""
        engine = self._new(status.id, status.order)
        engine.started(status)
        return engine

    def discard(self, status: EngineStatus) -> None:
        """Stop an engine that the machine runs and nobody wants."""
        self._abandon(self.adopt(status))

    def use_gate(self, gate: GateAddress | None) -> None:
        """Have new requests enter here; those on their way stay where they are."""
        self.gate = gate
        for engine in self._engines.values():
            engine.rewire()

    def take(self, event: AgentEvent) -> None:
        """Take an event of the machine; readings are ignored."""
        if isinstance(event, FileProgress):
            self._take_progress(event)
        if isinstance(event, FilesWarmed) and event.number in self._warming:
            self._warming.pop(event.number).set_result(event)
        if isinstance(event, InstallProgress):
            for progress in self._installs:
                progress.put_nowait(event)
        if isinstance(event, EngineBecameReady | EngineLeft | EngineGone) and event.id in self._engines:
            engine = self._engines[event.id]
            engine.take(event)
            if engine.gone:
                del self._engines[event.id]

    def reconcile(self, statuses: Iterable[EngineStatus]) -> Sequence[EngineStatus]:
        """Compare our engines with those of a hello; return those that are not ours, to adopt or discard."""
        # What became of a pull may have been said to nobody; a second one goes on where the first one is.
        self._give_up_files(f"{self.node} was not heard while it read or fetched a file")
        self._give_up_installs()
        by_id = {status.id: status for status in statuses}
        for id_, engine in [*self._engines.items()]:
            status = by_id.pop(id_, None)
            if status is not None:
                engine.started(status)
            elif engine.begun:
                engine.lose(f"{self.node} does not run the engine of {engine.order.name} any more")
            if engine.gone:
                del self._engines[id_]
        return tuple(by_id.values())

    def lose_all(self, why: str) -> None:
        """Count all engines as gone: the machine is lost."""
        self._losses += 1
        for engine in self._engines.values():
            engine.lose(why)
        self._engines.clear()
        self._give_up_files(why)
        self._give_up_installs()

    def by_id(self, id_: str) -> NodeEngine | None:
        """Return the engine of this id."""
        return self._engines.get(id_)

    async def share_cards(
        self, mode: MpsMode, group: MpsGroup, wanting: Mapping[DeviceId, int], max_loaded: int | None
    ) -> None:
        """Say how the machine's cards are shared, and how many models may use each. Raises MpsMissing."""
        await self._call(SHARE_CARDS, ShareCards(self._epoch, mode, group, wanting, max_loaded))

    async def files(self, paths: Sequence[Path]) -> Sequence[FileStatus]:
        """Return which of these files the machine has, and where; asked again as an order is in `start`."""
        losses = self._losses
        try:
            async with asyncio.timeout(self._start_within_s):
                asked = Paths(tuple(paths))
                return (await self._ask_again(FILES, asked, lambda: self._losses > losses)).files
        except TimeoutError:
            raise NodeUnreachable(f"{self.node} has not answered which files it has") from None

    async def watch_files(self, paths: Sequence[Path]) -> None:
        """Have the machine report these files, and no others: FilesSeen follows."""
        await self._call(WATCH_FILES, WatchFiles(self._epoch, tuple(paths)))

    async def pull(
        self, path: Path, url: str, sha256: str, size_bytes: int, headers: Mapping[str, str]
    ) -> None:
        """Have the machine fetch a file, and return once it is there. Raises PullFailed or NoRoomOnDisk."""
        done = self._pulls.get(path)
        if done is None:
            done = self._pulls[path] = asyncio.get_running_loop().create_future()
            self.fetches[path] = FileFetch(self.node, path.name, 0, size_bytes)
        await self._ask_again(PULL, Pull(self._epoch, path, url, sha256, size_bytes, headers), done.done)
        await asyncio.shield(done)

    async def warm_budget(self, limit_bytes: int | None) -> WarmBudget:
        """Return how much of the machine's RAM files may take."""
        return await self._call(WARM_BUDGET, AskWarmBudget(limit_bytes))

    async def warm(
        self, paths: Sequence[Path], reason: str, limit_bytes: int | None, *, at_idle: bool
    ) -> FilesWarmed:
        """Have the machine read files into RAM, and return what it did. Raises NodeUnreachable."""
        number = next(self._numbers)
        done: asyncio.Future[FilesWarmed] = asyncio.get_running_loop().create_future()
        self._warming[number] = done
        try:
            asked = Warm(self._epoch, number, tuple(paths), reason, limit_bytes, at_idle)
            await self._call(WARM, asked)
            return await done
        finally:
            self._warming.pop(number, None)

    async def stop_warming(self, why: str) -> None:
        """End what `warm` began."""
        await self._call(STOP_WARMING, StopWarming(self._epoch, why))

    async def forget_files(self, paths: Sequence[Path]) -> None:
        """Have the machine give the RAM of files back."""
        await self._call(FORGET_FILES, ForgetFiles(self._epoch, tuple(paths)))

    async def log(self, name: str, offset: int | None = None, limit_bytes: int = 65_536) -> LogBytes:
        """Return a part of the log of a model's last engine there: the end without an offset."""
        return await self._call(LOG, LogPart(name, offset, limit_bytes))

    async def doctor(self) -> Mapping[str, Any]:
        """Return what the doctor finds on the machine."""
        return (await self._call(DOCTOR, Nothing(), _SLOW_S)).report

    async def builds(self) -> FoundBuilds:
        """Return the machine's programs that can run models. Raises EngineMissing."""
        return await self._call(BUILDS, Nothing(), _SLOW_S)

    async def install(self, order: InstallOrder) -> AsyncGenerator[InstallStep, None]:
        """Install a build, and yield what happens. Raises BadRequest or EngineInstallFailed.

        Whoever stops listening does not stop it.
        """
        progress = asyncio.Queue[InstallProgress | NodeUnreachable]()
        self._installs.add(progress)
        try:
            begun = await self._call(INSTALL_ENGINE, InstallEngine(self._epoch, order), _SLOW_S)
            yield InstallStep(InstallStage.COMMAND, begun.command, begun.flavour)
            for note in begun.notes:
                yield InstallStep(InstallStage.NOTE, note, begun.flavour)
            while not order.dry_run:
                found = await progress.get()
                if isinstance(found, NodeUnreachable):
                    raise found
                if found.number != begun.number:
                    continue
                if found.error is not None:
                    raise error_from(found.error)
                if found.build is not None:
                    label = f"{found.build.form} {found.build.version}"
                    yield InstallStep(InstallStage.INSTALLED, label, begun.flavour, found.build)
                    return
                yield InstallStep(InstallStage.OUTPUT, found.line, begun.flavour)
        finally:
            self._installs.discard(progress)

    async def close(self) -> None:
        """Return when what was abandoned is gone, or its machine counts as lost."""
        await self._tasks.finished()

    def _give_up_files(self, why: str) -> None:
        for pull in self._pulls.values():
            _fail(pull, NodeUnreachable(why))
        for warming in self._warming.values():
            _fail(warming, NodeUnreachable(why))
        self._pulls.clear()
        self._warming.clear()
        self.fetches.clear()

    def _give_up_installs(self) -> None:
        hint = f"What came of it: cotenant engine list --node {self.node}"
        for progress in self._installs:
            error = NodeUnreachable(f"{self.node} was not heard while it installed an engine", hint=hint)
            progress.put_nowait(error)

    def _take_progress(self, event: FileProgress) -> None:
        pull = self._pulls.get(event.path)
        if pull is None:
            return
        if not (event.done or event.error):
            received = event.received_bytes, event.size_bytes
            self.fetches[event.path] = FileFetch(self.node, event.path.name, *received)
            return
        del self._pulls[event.path]
        self.fetches.pop(event.path, None)
        if event.error is not None:
            _fail(pull, error_from(event.error))
        else:
            pull.set_result(None)

    def _new(self, id_: str, order: EngineOrder) -> NodeEngine:
        engine = NodeEngine(self.node, id_, self._epoch, order, self._call, self._way)
        self._engines[id_] = engine
        return engine

    def _abandon(self, engine: NodeEngine) -> None:
        self._tasks.start(engine.stop(0))

    async def _ask_again(self, method: Method[P, R], params: P, is_over: Callable[[], bool]) -> R:
        """Call until there is an answer, or it `is_over`; for what may be done twice."""
        while True:
            try:
                return await self._call(method, params)
            except NodeUnreachable:
                if is_over():
                    raise
                await asyncio.sleep(_AGAIN_S)

    async def _call(self, method: Method[P, R], params: P, timeout_s: float | None = None) -> R:
        return await ask(self._transport, self.node, method, params, timeout_s or self._timeout_s)

    def _way(self, endpoint: Endpoint, token: str) -> Endpoint:
        if endpoint.host != _LOOPBACK or self.gate is None:
            # A server elsewhere, which is reached from here as well.
            return endpoint
        return replace(
            endpoint,
            host=self.gate.address,
            port=self.gate.port,
            tls=self.gate.tls,
            gate=token,
            ca=self._ca_of(self.gate.certificate),
            listeners=frozenset(),
        )


def _fail(pull: "asyncio.Future[Any]", error: CotenantError) -> None:
    pull.set_exception(error)
    # Whoever waited for it may be gone.
    pull.exception()
