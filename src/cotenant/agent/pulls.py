"""Fetches model files that this machine lacks, one at a time, from wherever the daemon says."""

import asyncio
import errno
import hashlib
import http.client
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cotenant import __version__
from cotenant.agent.events import EventLog
from cotenant.agent.files import STAGING
from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.concurrency.detached_thread import run_in_detached_thread
from cotenant.domain.errors import BadRequest, CotenantError, NoRoomOnDisk, PullFailed
from cotenant.domain.units import KIB, MIB, format_bytes
from cotenant.hub.client import BROKEN, Redirects
from cotenant.nodes.file_messages import Pull
from cotenant.nodes.messages import FileProgress
from cotenant.nodes.protocol import error_body

_CHUNK_BYTES: Final = 1 * MIB
_REPORT_EVERY_S: Final = 0.5
_TIMEOUT_S: Final = 30.0
_MAX_TRIES: Final = 5
"""How often a download without further bytes is tried again."""
_RETRY_DELAY_S: Final = 1.0
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_SPARE_BYTES: Final = 64 * KIB

_LOG = logging.getLogger(__name__)


class Puller:
    """Pulls files of a machine called `node`, in the order in which they were asked for.

    `arrived` is called when one has come, or has failed.
    A file gets its name once its size and its checksum are right. What has come of it before that is in a
    hidden folder next to it, and is kept for the next pull.
    """

    def __init__(self, node: str, events: EventLog, arrived: Callable[[], None] = lambda: None) -> None:
        self._node = node
        self._events = events
        self._arrived = arrived
        self._turn = asyncio.Lock()
        self._wanted: set[Path] = set()
        self._tasks = BackgroundTasks()
        self._opener = urllib.request.build_opener(Redirects)

    def pull(self, asked: Pull) -> None:
        """Begin; FileProgress follows. A second pull of a path does nothing. Raises BadRequest."""
        if not asked.path.is_absolute():
            raise BadRequest(f"{asked.path} is no absolute path")
        if not asked.url.startswith(("http://", "https://")):
            raise BadRequest("files are fetched by http and https alone")
        if asked.path not in self._wanted:
            self._wanted.add(asked.path)
            self._tasks.start(self._run(asked))

    async def _run(self, asked: Pull) -> None:
        loop = asyncio.get_running_loop()

        def report(received_bytes: int) -> None:
            event = FileProgress(asked.path, received_bytes, asked.size_bytes)
            loop.call_soon_threadsafe(self._events.add, event)

        error: CotenantError | None = None
        try:
            async with self._turn:
                await run_in_detached_thread(lambda: self._fetch(asked, report))
        except CotenantError as failed:
            error = failed
        except Exception as unforeseen:
            _LOG.exception("a pull failed unexpectedly: %s", asked.path)
            error = PullFailed(f"the pull failed unexpectedly: {unforeseen}")
        finally:
            self._wanted.discard(asked.path)
        self._arrived()
        received = asked.size_bytes if error is None else 0
        told = None if error is None else error_body(error)
        self._events.add(FileProgress(asked.path, received, asked.size_bytes, done=error is None, error=told))

    def _fetch(self, asked: Pull, report: Callable[[int], None]) -> None:
        """Have the file at its place, whole. Raises PullFailed or NoRoomOnDisk, which name the machine."""
        path = asked.path
        part = path.parent / STAGING / f"{path.name}.{asked.sha256[:16]}.part"
        try:
            if path.exists() and path.stat().st_size == asked.size_bytes and _sha256(path) == asked.sha256:
                return
            part.parent.mkdir(parents=True, exist_ok=True)
            self._check_room(asked, part)
            self._download(asked, part, report)
            size, checksum = part.stat().st_size, _sha256(part)
            if (size, checksum) != (asked.size_bytes, asked.sha256):
                part.unlink()
                wrong = (
                    f"{size} bytes, not {asked.size_bytes}"
                    if size != asked.size_bytes
                    else "another checksum"
                )
                raise PullFailed(
                    f"{path.name}, as {self._node} received it, has {wrong}",
                    hint="It is not used; pull it again.",
                )
            os.replace(part, path)
        except OSError as error:
            if error.errno in _FULL:
                raise self._full(asked, "is full") from error
            raise PullFailed(
                f"{error.filename or path} on {self._node} cannot be written: {error.strerror or error}",
                hint="Check the folder's permissions there.",
            ) from error

    def _check_room(self, asked: Pull, part: Path) -> None:
        have = part.stat().st_size if part.exists() else 0
        needed, free = asked.size_bytes - have, shutil.disk_usage(part.parent).free
        if needed + _SPARE_BYTES > free:
            raise self._full(asked, f"has {format_bytes(free)} free")

    def _full(self, asked: Pull, how: str) -> NoRoomOnDisk:
        return NoRoomOnDisk(
            f"{asked.path.name} ({format_bytes(asked.size_bytes)}) does not fit on {self._node}: the disk of "
            f"{asked.path.parent} {how}",
            hint=f"Free some of it on {self._node}, or keep the model to other machines with `nodes:`.",
        )

    def _download(self, asked: Pull, part: Path, report: Callable[[int], None]) -> None:
        tries = _MAX_TRIES
        while True:
            before = part.stat().st_size if part.exists() else 0
            if before >= asked.size_bytes:
                return
            why: object = "the connection was closed early"
            try:
                self._resume(asked, part, before, report)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                    part.unlink(missing_ok=True)
                elif error.code < 500 and error.code not in (408, 429):
                    what = f"the server answers {error.code}"
                    raise PullFailed(
                        f"{asked.path.name} cannot be fetched by {self._node}: {what}",
                        hint="Check that the daemon may read it, and its token for the hub.",
                    ) from error
                why = f"the server answers {error.code}"
            except BROKEN as error:
                if isinstance(error, OSError) and error.errno in _FULL:
                    raise
                why = getattr(error, "reason", error)
            after = part.stat().st_size if part.exists() else 0
            if after >= asked.size_bytes:
                return
            tries = _MAX_TRIES if after > before else tries - 1
            if not tries:
                raise PullFailed(
                    f"{asked.path.name} cannot be fetched by {self._node}: {why}",
                    hint="What has come is kept for the next pull.",
                )
            time.sleep(_RETRY_DELAY_S)

    def _resume(self, asked: Pull, part: Path, start: int, report: Callable[[int], None]) -> None:
        headers = {"User-Agent": f"cotenant/{__version__}", "Accept-Encoding": "identity", **asked.headers}
        if start:
            headers["Range"] = f"bytes={start}-"
        request = urllib.request.Request(asked.url, headers=headers)  # noqa: S310
        with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
            done = start if answer.status == http.client.PARTIAL_CONTENT else 0
            reported_at = float("-inf")
            with part.open("r+b" if done else "wb") as out:
                out.seek(done)
                # One byte too many shows that it is another file.
                while done <= asked.size_bytes and (chunk := answer.read1(_CHUNK_BYTES)):
                    out.write(chunk)
                    done += len(chunk)
                    if time.monotonic() >= reported_at + _REPORT_EVERY_S:
                        reported_at = time.monotonic()
                        report(done)
                out.flush()
                os.fsync(out.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
