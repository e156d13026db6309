"""llama.cpp engines of this machine: started, watched until ready, asked, stopped."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from pathlib import Path
from typing import Final

from cotenant.domain.engines import Endpoint, EngineBuild, EngineReport
from cotenant.domain.errors import (
    EngineError,
    EngineLacksDevice,
    EngineLoadFailed,
    EngineLoadTimeout,
)
from cotenant.domain.units import MIB, format_duration
from cotenant.engines import http_probe
from cotenant.engines.arguments import arguments_for, runs_on_described, validate, visible_devices
from cotenant.engines.builds import choose, discover
from cotenant.engines.commands import launch_command
from cotenant.engines.diagnosis import explain_failure
from cotenant.engines.host_facts import read_host_facts
from cotenant.engines.ports import LOOPBACK, ReservedPort
from cotenant.engines.process import ChildProcess
from cotenant.engines.report import missing_devices, parse_report
from cotenant.engines.rotating_log import DEFAULT_MAX_BYTES, RotatingLog
from cotenant.interfaces import EngineOrder

_FIRST_POLL_S: Final = 0.002
_LAST_POLL_S: Final = 0.02
_POLL_GROWTH: Final = 1.5
_HEALTH_TIMEOUT_S: Final = 5.0
_SLOTS_TIMEOUT_S: Final = 2.0
_LOAD_LOG_BYTES: Final = 4 * MIB
_EVIDENCE_BYTES: Final = MIB
_REPORT_WITHIN_S: Final = 0.5
_ROTATE_EVERY_S: Final = 1.0
_FAILED_LOAD_GRACE_S: Final = 0.0
_OK: Final = 200

_log = logging.getLogger(__name__)


class LlamaHost:
    """Starts llama.cpp engines, each on the build that can use its devices.

    `configured` is the operator's own llama-server. `cuda_version` is the driver's, for advice only. A log
    that outgrows `log_max_bytes` is set aside; of each, two older ones are kept.
    """

    def __init__(
        self,
        *,
        log_dir: Path,
        configured: Path | None = None,
        cuda_version: str | None = None,
        log_max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._log_dir = log_dir
        self._configured = configured
        self._cuda_version = cuda_version
        self._log_max_bytes = log_max_bytes
        self._logs_in_use: dict[Path, LlamaEngine] = {}

    async def build_for(self, order: EngineOrder) -> EngineBuild:
        """Return the build that `start` would use. Raises EngineMissing or EngineLacksDevice."""
        builds = await asyncio.to_thread(discover, self._configured)
        return choose(builds, visible_devices(order), cuda_version=self._cuda_version)

    async def start(self, order: EngineOrder) -> LlamaEngine:
        """Start loading. Call it in the thread of the event loop: the engine dies with that thread.

        Raises BadRecipe, EngineMissing or EngineLacksDevice before anything runs, EngineLoadFailed if the
        program or its log cannot be opened.
        """
        validate(order)
        build = await self.build_for(order)
        if runs_on_described(order.placement):
            _log.warning(
                "%s is planned on described GPUs, which this machine does not have: it runs on the CPU",
                order.name,
            )
        port = ReservedPort()
        try:
            arguments = arguments_for(order, read_host_facts(), port.number)
            command = await asyncio.to_thread(launch_command, build, order, arguments)
            log = RotatingLog(self._free_log_path(order.name), max_bytes=self._log_max_bytes)
            process = _spawn(order.name, command.argv, command.env, log)
        except BaseException:
            port.close()
            raise
        engine = LlamaEngine(order, build, process, port, log)
        self._logs_in_use[log.path] = engine
        return engine

    def _free_log_path(self, name: str) -> Path:
        """Return a log file that no engine of ours writes: the same name at every start, if possible."""
        for path in [path for path, engine in self._logs_in_use.items() if engine.ended]:
            del self._logs_in_use[path]
        stem = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "model"
        path, number = self._log_dir / f"{stem}.log", 1
        while path in self._logs_in_use:
            number += 1
            path = self._log_dir / f"{stem}.{number}.log"
        return path


class LlamaEngine:
    """One llama.cpp process that serves one model."""

    def __init__(
        self,
        order: EngineOrder,
        build: EngineBuild,
        process: ChildProcess,
        port: ReservedPort,
        log: RotatingLog,
    ) -> None:
        self._order = order
        self._build = build
        self._process = process
        self._port = port
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._report: EngineReport | None = None
        self._endpoint = Endpoint(LOOPBACK, port.number)
        self._keeper = asyncio.create_task(self._keep())

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens; known before it is ready."""
        return self._endpoint

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def build(self) -> EngineBuild:
        """The program that runs."""
        return self._build

    @property
    def log_path(self) -> Path:
        """The file that takes its output."""
        return self._log.path

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.returncode is not None

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when it answers, milliseconds after it can.

        Raises EngineLoadFailed, EngineLoadTimeout or, if it came up without the GPUs that it was planned on,
        EngineLacksDevice; the process is gone by then.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._healthy_or_ended()
                if not self.ended:
                    await self._check_devices()
        except TimeoutError:
            await self.stop(_FAILED_LOAD_GRACE_S)
            raise EngineLoadTimeout(
                f"{self._order.name} was not ready within {format_duration(timeout_s)}", hint=self._log_hint()
            ) from None
        except EngineError:
            await self.stop(_FAILED_LOAD_GRACE_S)
            raise
        returncode = self._process.returncode
        if returncode is not None:
            await self.stop(_FAILED_LOAD_GRACE_S)
            why = explain_failure(returncode, self._log.tail(_EVIDENCE_BYTES))
            raise EngineLoadFailed(f"{self._order.name} could not be loaded: {why}", hint=self._log_hint())

    async def wait_exit(self) -> str:
        """Return when the process has gone, with one sentence on how and why."""
        returncode = await self._process.wait()
        if self._stopping:
            return f"{self._order.name} was stopped"
        if returncode == 0:
            return f"{self._order.name} ended by itself"
        return f"{self._order.name} died: {explain_failure(returncode, self._log.tail(_EVIDENCE_BYTES))}"

    async def busy_slots(self) -> int | None:
        """Count the slots that are generating; None if it cannot be told."""
        answer = await http_probe.get(self._endpoint, "/slots", timeout_s=_SLOTS_TIMEOUT_S)
        if answer is None or answer[0] != _OK:
            return None
        try:
            return sum(bool(slot["is_processing"]) for slot in json.loads(answer[1]))
        except (ValueError, KeyError, TypeError):
            return None

    def report(self) -> EngineReport | None:
        """Read back the bytes that the engine says it took; None if it did not say."""
        if self._report is not None:
            return self._report
        report = parse_report(self._log.head(_LOAD_LOG_BYTES).splitlines())
        if report is not None and any(device.parts.compute for device in report.devices):
            # Compute buffers come last. Kept, since the log will be set aside when it has grown.
            self._report = report
        return report

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, insist after `grace_s`, and return when the process group is gone."""
        self._stopping = self._stopping or not self.ended
        if not await self._process.stop(grace_s):
            _log.error(
                "%s (process group %d) does not go away though killed: a driver still holds it",
                self._order.name,
                self.pid,
            )
        await asyncio.wait({self._keeper})

    async def _healthy_or_ended(self) -> None:
        ended = asyncio.create_task(self._process.wait())
        healthy = asyncio.create_task(self._healthy())
        try:
            await asyncio.wait({ended, healthy}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            healthy.cancel()
            await asyncio.gather(ended, healthy, return_exceptions=True)

    async def _healthy(self) -> None:
        pause_s = _FIRST_POLL_S
        while True:
            answer = await http_probe.get(self._endpoint, "/health", timeout_s=_HEALTH_TIMEOUT_S)
            if answer is not None and answer[0] == _OK:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * _POLL_GROWTH, _LAST_POLL_S)

    async def _check_devices(self) -> None:
        """Hold the engine to the GPUs that it was planned on: it would take what is left without a word."""
        planned = visible_devices(self._order)
        report = await self._report_soon()
        if report is None or not planned:
            return
        missing = missing_devices(planned, report)
        if missing:
            names = ", ".join(device.label for device in missing)
            raise EngineLacksDevice(
                f"{self._order.name} was planned on {names}, which the engine did not find",
                hint=f"See `cotenant gpus`, `cotenant engine list` and the engine's log, {self._log.path}.",
            )

    async def _report_soon(self) -> EngineReport | None:
        """Read the report; the engine's log thread may still be writing it."""
        deadline = self._loop.time() + _REPORT_WITHIN_S
        while True:
            report = self.report()
            if self._report is not None or self._loop.time() >= deadline:
                return report
            await asyncio.sleep(_LAST_POLL_S)

    async def _keep(self) -> None:
        """Keep the log small while the process lives, and the port until then."""
        try:
            while not self.ended:
                exited = asyncio.create_task(self._process.wait())
                await asyncio.wait({exited}, timeout=_ROTATE_EVERY_S)
                exited.cancel()
                if self._log.overgrown:
                    await asyncio.to_thread(self._rotate)
        finally:
            self._port.close()

    def _rotate(self) -> None:
        try:
            self._log.rotate()
        except OSError as error:
            _log.error("the log %s cannot be rotated: %s", self._log.path, error.strerror)

    def _log_hint(self) -> str:
        return f"The engine's log is {self._log.path}."


def _spawn(name: str, argv: tuple[str, ...], env: dict[str, str], log: RotatingLog) -> ChildProcess:
    try:
        output = log.open()
    except OSError as error:
        raise EngineLoadFailed(
            f"the log {log.path} cannot be written: {error.strerror}", hint="Choose another folder for logs."
        ) from error
    try:
        return ChildProcess.start(argv, env=env, output_fd=output)
    except OSError as error:
        raise EngineLoadFailed(f"{name} could not be loaded: {argv[0]}: {error.strerror}") from error
    finally:
        os.close(output)
