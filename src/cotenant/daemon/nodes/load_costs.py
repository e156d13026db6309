"""How soon each model loads on each machine, by where its files are there; posted to the core."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.config.configuration import ModelEntry
from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.nodes.files import NodeFiles, model_files, own_size
from cotenant.daemon.nodes.hosts import NodeHosts
from cotenant.daemon.nodes.load_times import LoadTimes
from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.errors import CotenantError
from cotenant.domain.nodes import FileState, LoadCost
from cotenant.domain.residencies import model_of
from cotenant.domain.units import MIB, format_bytes
from cotenant.nodes.file_messages import FileStatus
from cotenant.nodes.messages import FilesSeen
from cotenant.scheduling.events import LoadCostsRead

_SLOWEST_FIRST: Final = tuple(reversed(FileState))
_ALL_OF_IT: Final = 0.9
_LONG_BYTES: Final = 64 * MIB
"""What is fetched of less than this says little of how fast that is."""

_LOG = logging.getLogger(__name__)


class NodeLoadCosts:
    """Has machines report the files of the models that may be there, and tells the core what follows.

    `times` learns from each load, and `learned` is called then. It gets the decisions by `decided`.
    """

    def __init__(
        self,
        loop: Loop,
        hosts: NodeHosts,
        active: ActiveConfiguration,
        files: NodeFiles,
        times: LoadTimes,
    ) -> None:
        self._loop = loop
        self._hosts = hosts
        self._active = active
        self._files = files
        self.times = times
        self.learned: Callable[[], None] = lambda: None
        self._seen: dict[str, dict[Path, FileStatus]] = {}
        self._watched: dict[str, tuple[Path, ...]] = {}
        self._sizes: dict[Path, int | None] = {}
        self._begun: dict[str, tuple[str, FileState]] = {}
        self._tasks = BackgroundTasks()

    def greeted(self, node: str) -> None:
        """Ask a machine that has just greeted for its files."""
        self._seen.setdefault(node, {})
        self._watched.pop(node, None)
        self._watch(node)
        self._tasks.start(self._measure())

    def configured(self) -> None:
        """Ask for the files of the models that are served now."""
        for node in self._seen:
            self._watch(node)
        self._tasks.start(self._measure())

    def seen(self, node: str, event: FilesSeen) -> None:
        """Take what a machine reports of its files."""
        self._seen.setdefault(node, {}).update({each.path: each for each in event.files})
        changed = {each.path for each in event.files}
        self._publish([each for each in self._active.models if changed & {*model_files(each)}])

    def lost(self, node: str) -> None:
        """Forget the files of a machine that is lost."""
        self._seen.pop(node, None)
        self._publish(self._active.models)

    def fetched(self, node: str, size: int, seconds: float) -> None:
        """Learn how fast a machine fetches files."""
        if size >= _LONG_BYTES:
            self.times.learn_rate(node, FileState.ABSENT, size, seconds)
            self.learned()

    def decided(self, decision: Decision) -> None:
        """Learn how long a load takes."""
        name = decision.model
        if name is None or decision.kind not in (DecisionKind.LOAD, DecisionKind.READY):
            return
        state = self._loop.scheduler.state
        model, entry = state.models.get(name), self._loop.fleet.entries.get(model_of(name))
        if model is None or entry is None:
            return
        if decision.kind is DecisionKind.LOAD:
            self._begun.pop(name, None)
            residency = state.residencies.get(model.stays_as) if model.stays_as else None
            if residency is not None and residency.node is not None and not residency.adopted:
                found = self._only_state(residency.node, entry)
                if found is not None:
                    self._begun[name] = residency.node, found
        elif name in self._begun:
            node, began_as = self._begun.pop(name)
            size = _bytes_of(entry)
            self.times.learn(entry.name, node, began_as, size, float(decision.facts["load_s"]))
            self.learned()
            # Not at once: commands are being executed.
            asyncio.get_running_loop().call_soon(self._publish, [entry])

    def _watch(self, node: str) -> None:
        paths = {path for entry in self._active.models for path in model_files(entry) if _may_be(entry, node)}
        wanted = tuple(sorted(paths))
        if self._watched.get(node) != wanted:
            self._watched[node] = wanted
            self._tasks.start(self._ask(node, wanted))

    async def _measure(self) -> None:
        """Measure the files of this machine, which those of others are compared with."""
        paths = {path for entry in self._active.models for path in model_files(entry)}
        self._sizes = await run_in_detached_thread(lambda: {path: own_size(path) for path in paths})
        self._publish(self._active.models)

    async def _ask(self, node: str, paths: Sequence[Path]) -> None:
        try:
            await self._hosts.of(node).watch_files(paths)
        except CotenantError as error:
            # One that does not answer is asked after its next greeting.
            self._watched.pop(node, None)
            _LOG.warning("where the files of models are on %s is not known: %s", node, error.message)

    def _publish(self, entries: Iterable[ModelEntry]) -> None:
        changed = {}
        for entry in entries:
            costs = {node: cost for node in self._seen if (cost := self._cost(node, entry)) is not None}
            model = self._loop.scheduler.state.models.get(entry.name)
            if model is not None and model.load_costs != costs:
                changed[entry.name] = costs
        if changed:
            self._loop.post(LoadCostsRead(self._loop.clock.now(), changed))

    def _statuses(self, node: str, entry: ModelEntry) -> list[FileStatus] | None:
        """Return a model's files on a machine; None if it has none, or the machine has not reported all."""
        seen = self._seen.get(node, {})
        paths = [*model_files(entry)] if _may_be(entry, node) else []
        found = [seen[path] for path in paths if path in seen]
        return found if paths and len(found) == len(paths) else None

    def _cost(self, node: str, entry: ModelEntry) -> LoadCost | None:
        found = self._statuses(node, entry)
        if found is None:
            return None
        size = _bytes_of(entry)
        absent = [each for each in found if each.state is FileState.ABSENT]
        if absent:
            return self._cost_of_absent(node, entry, absent)
        for each in found:
            own = self._sizes.get(each.path)
            if own is not None and each.size_bytes is not None and own != each.size_bytes:
                there, here = format_bytes(each.size_bytes), format_bytes(own)
                why = f"another file {each.path}: {there} there, {here} on the daemon's machine"
                return LoadCost(None, FileState.DIFFERENT, why)
        state = min((each.state for each in found), key=_SLOWEST_FIRST.index)
        warm = _warm_share(found)
        seconds = warm * self.times.load_s(entry.name, node, FileState.WARM, size)
        if warm < 1:
            seconds += (1 - warm) * self.times.load_s(entry.name, node, state, size)
        return LoadCost(_rounded(seconds), state)

    def _cost_of_absent(self, node: str, entry: ModelEntry, absent: Sequence[FileStatus]) -> LoadCost:
        missing_bytes = sum(self._sizes.get(each.path) or 0 for each in absent)
        lacks, room_bytes = f"no file {absent[0].path}", absent[0].room_bytes
        for each in absent:
            why_not = self._files.why_not_fetched(each.path)
            if why_not:
                return LoadCost(None, FileState.ABSENT, f"no file {each.path}, {why_not}")
        if room_bytes is not None and missing_bytes > room_bytes:
            size, room = format_bytes(missing_bytes), format_bytes(room_bytes)
            why_not = f"and {size} do not fit on the disk there, which has {room} free"
            return LoadCost(None, FileState.ABSENT, f"{lacks}, {why_not}")
        # What has just been fetched is in the page cache.
        load_s = self.times.load_s(entry.name, node, FileState.WARM, _bytes_of(entry))
        return LoadCost(_rounded(self.times.fetch_s(node, missing_bytes) + load_s), FileState.ABSENT)

    def _only_state(self, node: str, entry: ModelEntry) -> FileState | None:
        """Return the state of all bytes of a model; None if they are in several, or somewhere absent."""
        found = self._statuses(node, entry)
        states = {each.state for each in found or ()}
        if found is None or FileState.ABSENT in states:
            return None
        warm = _warm_share(found)
        if warm >= _ALL_OF_IT:
            return FileState.WARM
        return None if len(states) > 1 or warm > 1 - _ALL_OF_IT else states.pop()


def _may_be(entry: ModelEntry, node: str) -> bool:
    return not entry.nodes or node.lower() in entry.nodes


def _bytes_of(entry: ModelEntry) -> int:
    return sum(each.size for each in entry.signature) or entry.shape.file_bytes


def _warm_share(files: Sequence[FileStatus]) -> float:
    total = sum(each.size_bytes or 0 for each in files)
    warm = sum(
        (each.size_bytes or 0) if each.state is FileState.WARM else (each.warm_bytes or 0) for each in files
    )
    if all(each.state is FileState.WARM for each in files):
        return 1.0
    return warm / total if total else 0.0


def _rounded(seconds: float) -> float:
    """Return two digits of an estimate: plans do not change with what is within its error."""
    return float(f"{seconds:.2g}")
