"""Sees to it that a machine has the files of a model before its engine starts there."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.config.configuration import ModelEntry
from cotenant.config.values.nodes import NodePull
from cotenant.daemon.nodes.file_server import FileServer
from cotenant.domain.errors import ModelFileMissing
from cotenant.domain.hub import PullStep, hub_name
from cotenant.domain.nodes import FileFetch, FileState
from cotenant.domain.units import format_count
from cotenant.hub.client import HubClient
from cotenant.interfaces import EngineOrder
from cotenant.model_parts import part_paths
from cotenant.nodes.engine_host import NodeEngineHost
from cotenant.nodes.file_messages import FileStatus

_LIST_WITHIN_S: Final = 30.0
_SHOWN_EVERY_S: Final = 0.5

_LOG = logging.getLogger(__name__)


class NodeFiles:
    """Has machines fetch the files that they lack, from where `nodes.pull` says.

    `fetched` is called with the machine, the bytes and the seconds of each.
    """

    def __init__(self, pull: NodePull) -> None:
        self.pull = pull
        self.fetched: Callable[[str, int, float], None] = lambda *_: None
        self._fetching: dict[tuple[str, str], tuple[NodeEngineHost, Path]] = {}
        self._ordered: set[asyncio.Task[None]] = set()
        self._server = FileServer()
        self._hashes: dict[tuple[Path, int, int], str] = {}

    async def ensure(self, host: NodeEngineHost, order: EngineOrder) -> None:
        """Return once a machine has all files of a model; that is part of its load.

        Raises ModelFileMissing if nobody may fetch one, HubError if that fails.
        """
        for found in await self._lacking(host, [*files_of(order)]):
            path = found.path
            if found.state is FileState.DIFFERENT:
                raise ModelFileMissing(
                    f"{order.name} cannot be loaded: {host.node} has another file {path} than the daemon's "
                    "machine, by its size",
                    hint=f"Have it replaced: cotenant pull {order.name} --node {host.node}.",
                )
            if self.pull is NodePull.NEVER:
                raise ModelFileMissing(
                    f"{order.name} cannot be loaded: {host.node} has no file {path}",
                    hint=f"Copy it there, or: cotenant pull {order.name} --node {host.node}. Or share its "
                    "folder, or set `nodes.pull`.",
                )
            await self._fetch(host, order.name, path)

    async def order(
        self, host: NodeEngineHost, model: str, paths: Sequence[Path]
    ) -> AsyncGenerator[PullStep, None]:
        """Have a machine fetch the files of a model that it lacks, as an operator wants; yield the progress.

        Those of another size than on the daemon's machine are replaced. They come from there unless
        `nodes.pull` says otherwise. It goes on if nobody listens any more. Raises ModelFileMissing, HubError
        or NodeUnreachable.
        """
        lacking = await self._lacking(host, paths)
        yield PullStep(f"{host.node} lacks {len(lacking)} of {format_count(len(paths), 'file')} of {model}")

        async def fetch() -> None:
            for found in lacking:
                await self._fetch(host, model, found.path)

        work = asyncio.get_running_loop().create_task(fetch())
        self._ordered.add(work)
        work.add_done_callback(self._ordered_has_ended)
        before: FileFetch | None = None
        while not work.done():
            await asyncio.wait({work}, timeout=_SHOWN_EVERY_S)
            now = self.fetching(model, host.node)
            if now is not None and now != before:
                before, what = now, f"{host.node} fetches {now.file}"
                yield PullStep(what, now.file, None, now.total_bytes, now.received_bytes)
        await work
        yield PullStep("pulled", files=tuple(map(str, paths)))

    def fetches(self, model: str) -> tuple[FileFetch, ...]:
        """Return what machines fetch for a model now, for a load or because an operator wants it."""
        found = [each for (name, _), each in sorted(self._fetching.items()) if name == model]
        return tuple(fetch for host, path in found if (fetch := host.fetches.get(path)) is not None)

    def fetching(self, model: str, node: str | None) -> FileFetch | None:
        """Return what a machine fetches for a model now, if so."""
        return next((fetch for fetch in self.fetches(model) if fetch.node == node), None)

    async def _lacking(self, host: NodeEngineHost, paths: Sequence[Path]) -> list[FileStatus]:
        """Return the files that a machine lacks, or has of another size than this one."""
        own = await run_in_detached_thread(lambda: {path: own_size(path) for path in paths})
        lacking = []
        for found in await host.files(paths):
            sizes = {found.size_bytes, own[found.path]} - {None}
            if found.state is FileState.ABSENT:
                lacking.append(found)
            elif len(sizes) > 1:
                lacking.append(replace(found, state=FileState.DIFFERENT))
        return lacking

    async def _fetch(self, host: NodeEngineHost, model: str, path: Path) -> None:
        """Have a machine fetch a file, and learn how fast that is."""
        from_hub = self.pull is NodePull.HUB
        _LOG.info("%s fetches %s from %s", host.node, path, "the hub" if from_hub else "the daemon's machine")
        began, key = asyncio.get_running_loop().time(), (model, host.node)
        self._fetching[key] = host, path
        try:
            size = await (self._from_hub if from_hub else self._from_here)(host, path)
        finally:
            self._fetching.pop(key, None)
        self.fetched(host.node, size, asyncio.get_running_loop().time() - began)

    def _ordered_has_ended(self, work: "asyncio.Task[None]") -> None:
        self._ordered.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            _LOG.warning("a pull has failed: %s", error)

    def why_not_fetched(self, path: Path) -> str:
        """Return as a clause why a machine that lacks a file cannot fetch it; empty if it can."""
        if self.pull is NodePull.NEVER:
            return "and `nodes.pull` is never"
        if self.pull is NodePull.HUB and hub_name(path.parent.name, path.name) is None:
            return "and it was not pulled from a hub"
        return ""

    def close(self) -> None:
        """Serve no file any more, and wait for none."""
        for work in self._ordered:
            work.cancel()
        self._server.close()

    async def _from_hub(self, host: NodeEngineHost, path: Path) -> int:
        name = hub_name(path.parent.name, path.name)
        if name is None:
            raise ModelFileMissing(
                f"{host.node} has no file {path}, which was not pulled from a hub",
                hint="Copy it there, or set `nodes.pull: daemon`.",
            )
        client = HubClient()
        revision, listed = await asyncio.to_thread(client.files, name.repository, _LIST_WITHIN_S)
        found = next((file for file in listed if file.name == path.name), None)
        if found is None or found.sha256 is None or found.size_bytes is None:
            raise ModelFileMissing(
                f"{host.node} has no file {path}, and {name} has none of this name with a checksum",
                hint="Copy it there, or set `nodes.pull: daemon`.",
            )
        url, headers = client.address(name.repository, revision, found.path)
        await host.pull(path, url, found.sha256, found.size_bytes, headers)
        return found.size_bytes

    async def _from_here(self, host: NodeEngineHost, path: Path) -> int:
        try:
            stat = await asyncio.to_thread(path.stat)
            key = (path, stat.st_size, stat.st_mtime_ns)
            if key not in self._hashes:
                self._hashes[key] = await asyncio.to_thread(_sha256, path)
        except OSError as error:
            raise ModelFileMissing(
                f"neither {host.node} nor the daemon's machine has the file {path}: {error.strerror}",
                hint="Correct its path, or set `nodes.pull: hub`.",
            ) from error
        gate = None if host.gate is None else (host.gate.address, host.gate.port)
        with self._server.offering(path, gate) as (url, headers):
            await host.pull(path, url, self._hashes[key], stat.st_size, headers)
        return stat.st_size


def files_of(order: EngineOrder) -> Iterator[Path]:
    """Yield all files that an engine reads; of a split model all parts."""
    for path in (order.model_path, order.projector_path, *map(Path, order.companions.files())):
        if path is not None and path.is_absolute():
            yield from part_paths(path)


def own_size(path: Path) -> int | None:
    """Return the size of a file of this machine; None if there is none. Call it in a thread."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def model_files(entry: ModelEntry) -> Iterator[Path]:
    """Yield all files of a model that machines need."""
    own = entry.parts or ((entry.path,) if entry.path is not None else ())
    for path in (*own, entry.projector_path, *map(Path, entry.companions.files())):
        if path is not None and path.is_absolute():
            yield path


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
