"""Pulls models, each in a child process (`fetch`)."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from cotenant.domain import errors
from cotenant.domain.errors import CotenantError, NotOffered, PullFailed, QueueFull
from cotenant.domain.hub import HubName, PullStep
from cotenant.domain.units import MIB

_ERRORS_BY_CODE: Final[dict[str, type[CotenantError]]] = {
    kind.code: kind
    for kind in (errors.HubSilent, errors.NotOnHub, errors.NoRoomOnDisk, PullFailed, NotOffered)
}
_MAX_STDERR_CHARS: Final = 400
_GRACE_S: Final = 2.0
_MAX_PULLS: Final = 4
"""Each is a process of 25 MB that shares the line and the disk with the others."""
_LINES_UNTIL_LISTED: Final = 2
"""The child's first line says that it asks the hub; the second follows the hub's answer."""


class HubPuller:
    """Pulls into the folder that `models_dir` returns at each pull; None means that pulls are refused.

    They are also refused while `allowed` returns False. `arrived` is awaited after each pull. `list_within_s`
    bounds the wait for the hub's first answer.
    """

    def __init__(
        self,
        models_dir: Callable[[], Path | None],
        *,
        allowed: Callable[[], bool] = lambda: True,
        arrived: Callable[[], Awaitable[object]] | None = None,
        list_within_s: float = 15.0,
    ) -> None:
        self._models_dir = models_dir
        self._allowed = allowed
        self._arrived = arrived
        self._list_within_s = list_within_s
        self._running = 0

    async def pull(self, name: str) -> AsyncGenerator[PullStep, None]:
        """Fetch a model, yielding each step. Raises BadHubName, HubError, NotOffered or QueueFull."""
        wanted = HubName.parse(name)
        if not self._allowed():
            raise NotOffered("this server pulls no models", hint="Its operator may: `cotenant pull`.")
        models_dir = self._models_dir()
        if models_dir is None:
            raise NotOffered(
                "there is no folder to pull models to", hint="Set models_dir in the configuration."
            )
        if self._running == _MAX_PULLS:
            raise QueueFull(f"{_MAX_PULLS} models are being pulled", hint="Wait until one of them is there.")
        self._running += 1
        child = None
        request = {"name": str(wanted), "models_dir": str(models_dir), "list_within_s": self._list_within_s}
        try:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "cotenant.hub.fetch", json.dumps(request)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=MIB,
                start_new_session=True,
            )
            async with contextlib.aclosing(_steps(child, self._list_within_s)) as steps:
                async for step in steps:
                    yield step
        finally:
            self._running -= 1
            if child is not None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.communicate()
        if self._arrived is not None:
            await self._arrived()


async def _steps(child: asyncio.subprocess.Process, list_within_s: float) -> AsyncGenerator[PullStep, None]:
    assert child.stdout is not None  # noqa: S101  it is a pipe
    assert child.stderr is not None  # noqa: S101
    # Read continuously, so that a full pipe never blocks the child; the last line explains a crash.
    warnings = asyncio.create_task(child.stderr.read())
    try:
        n_lines = 0
        while True:
            # The child's own timeouts do not cover name resolution, which may hang.
            within_s = list_within_s + _GRACE_S if n_lines < _LINES_UNTIL_LISTED else None
            try:
                line = await asyncio.wait_for(child.stdout.readline(), within_s)
            except TimeoutError:
                raise errors.HubSilent(
                    f"the hub did not answer within {list_within_s:g} s", hint="Check the network."
                ) from None
            if not line:
                break
            n_lines += 1
            step: dict[str, Any] = json.loads(line)
            if "error" in step:
                error = step["error"]
                raise _ERRORS_BY_CODE.get(error["code"], PullFailed)(error["message"], hint=error["hint"])
            if "files" in step:
                yield PullStep("pulled", files=tuple(step["files"]))
                return
            yield PullStep(**step)
        last_lines = (await warnings).decode("utf-8", "replace").strip()[-_MAX_STDERR_CHARS:].splitlines()
        raise PullFailed(
            f"the pull ended early{f': {last_lines[-1]}' if last_lines else ''}",
            hint="Pull it again: it continues where it stopped.",
        )
    finally:
        warnings.cancel()
        await asyncio.gather(warnings, return_exceptions=True)
