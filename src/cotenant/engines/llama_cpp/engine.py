"""llama.cpp engines on this machine, each on a build that can use its devices."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Final

from cotenant.domain.devices import Device
from cotenant.domain.engines import EngineBuild, EngineForm, EngineReport
from cotenant.domain.errors import EngineLacksDevice, EngineMissing
from cotenant.domain.exit_causes import Diagnosis
from cotenant.domain.units import MIB
from cotenant.domain.vendors import Vendor
from cotenant.engines.base.host_inputs import HostInputs
from cotenant.engines.base.server import ServerEngine, ServerHost, Started
from cotenant.engines.launch.plan import LaunchPlan, runs_on_described, visible_devices
from cotenant.engines.llama_cpp.arguments import LlamaArguments, arguments_for, validate
from cotenant.engines.llama_cpp.builds import choose, choose_for_rpc, discover, server_flags
from cotenant.engines.llama_cpp.host_facts import read_host_facts
from cotenant.engines.llama_cpp.image_builds import image_build
from cotenant.engines.llama_cpp.over_machines import (
    LendingEngine,
    check_versions,
    lending_plan,
    with_lent_gpus,
)
from cotenant.engines.llama_cpp.report import missing_devices, parse_report, without_lent
from cotenant.engines.llama_cpp.server_flags import SLOT_FOLDER, server_argv
from cotenant.engines.llama_cpp.slots import EngineSlots
from cotenant.http.client import probe_ok
from cotenant.interfaces import EngineOrder

_SLOTS: Final = "/slots"
_SLOTS_TIMEOUT_S: Final = 2.0
_LOAD_LOG_BYTES: Final = 4 * MIB
_REPORT_WITHIN_S: Final = 0.5
_REPORT_POLL_S: Final = 0.02

_BACKENDS: Final = {Vendor.NVIDIA: "CUDA", Vendor.AMD: "ROCm"}

_log = logging.getLogger(__name__)


def llama_plan(
    build: EngineBuild, order: EngineOrder, arguments: LlamaArguments, *, guarded: bool = False
) -> LaunchPlan:
    """Render `arguments` for one build; if `guarded`, it is always under a guard.

    Raises EngineMissing if a llama-server does not know one of them.
    """
    embedded = build.form is EngineForm.EMBEDDED
    devices = visible_devices(order)
    if arguments.draft_path is not None and arguments.n_gpu_layers and len(devices) > 1 and not order.parts:
        arguments = replace(arguments, draft_device=_first_device(build, devices[0]))
    if embedded and arguments.control_vectors:
        raise EngineMissing(
            "the embedded engine has no control vectors",
            hint="Give a llama-server: `llama_server:` or --llama-server.",
        )
    if embedded:
        parent = 0 if guarded else os.getpid()
        worker = ("-P", "-m", "cotenant.engines.llama_cpp.worker", str(parent))
        words = [*worker, json.dumps(asdict(arguments))]
    else:
        flags = server_flags(build) if order.launch.image is None else image_build(order.launch)[1]
        words = server_argv(arguments, flags)
    return LaunchPlan.of(
        order,
        (build.program, *words),
        arguments.port,
        ends_with_parent=embedded and not guarded,
        shares_port=embedded or "--reuse-port" in words,
        key_variable="LLAMA_API_KEY",
    )


def _first_device(build: EngineBuild, device: Device) -> str:
    """Return a build's name of the first GPU that it is shown; one in an image does not list its devices."""
    if build.devices:
        return build.devices[0].name.rstrip("0123456789") + "0"
    return _BACKENDS[device.vendor or Vendor.NVIDIA] + "0"


class LlamaHost(ServerHost):
    """Starts llama.cpp engines, each on the build that can use its devices.

    A build that has once died of an illegal instruction with repacked weights never repacks them again: some
    virtual machines advertise AMX but do not have it. The scheduler's next attempt then loads.
    """

    def __init__(self, inputs: HostInputs) -> None:
        super().__init__(inputs)
        self._never_repack: set[str] = set()

    async def build_for(self, order: EngineOrder) -> EngineBuild:
        """Return the build that `start` would use. Raises EngineMissing or EngineLacksDevice."""
        if order.launch.image is not None:
            return (await asyncio.to_thread(image_build, order.launch))[0]
        own = next(map(Path, order.options.command), self._inputs.llama_server)
        builds = await asyncio.to_thread(discover, own)
        if order.parts or order.lends_gpus:
            build = choose_for_rpc(builds, visible_devices(order))
            check_versions(order, build)
            return build
        return choose(builds, visible_devices(order), cuda_version=self._inputs.cuda_version)

    async def start(self, order: EngineOrder) -> ServerEngine:
        """Start loading. Call it in the thread of the event loop: the engine dies with that thread.

        Raises BadRecipe, EngineMissing or EngineLacksDevice before anything runs, EngineLoadFailed if the
        program or its log cannot be opened.
        """
        if order.lends_gpus:
            return await self._start_lending(order)
        validate(order)
        build = await self.build_for(order)
        if runs_on_described(order.placement):
            _log.warning(
                "%s is planned on described GPUs, which this machine does not have: it runs on the CPU",
                order.name,
            )
        arguments = arguments_for(order, read_host_facts(), 0)
        if build.program in self._never_repack:
            arguments = replace(arguments, repack=False)
        if order.parts:
            own = [_first_device(build, device) for device in visible_devices(order)[:1]]
            arguments = with_lent_gpus(order, arguments, "".join(own).rstrip("0"))
        slots = self._slots(order, build)
        if slots is not None:
            arguments = replace(arguments, slot_folder=str(slots.store.folder_of(slots.key)))
        guarded = self._inputs.lease is not None
        started = await self._start(
            order, lambda port: llama_plan(build, order, replace(arguments, port=port), guarded=guarded)
        )
        never_repack = partial(self._never_repack.add, build.program) if arguments.repack else None
        saves = build.form is EngineForm.EMBEDDED or SLOT_FOLDER in started.plan.argv
        return LlamaEngine(started, build, never_repack, slots if saves else None)

    async def _start_lending(self, order: EngineOrder) -> LendingEngine:
        build = await self.build_for(order)
        started = await self._start(order, lambda port: lending_plan(build, order, port))
        return LendingEngine(started, replace(build, program=build.rpc_server or ""))

    def _slots(self, order: EngineOrder, build: EngineBuild) -> EngineSlots | None:
        """Return how slots are saved and restored; None if they are not to be, or cannot be."""
        store, cache = self._inputs.slots, order.slot_cache
        if store is None or cache is None or order.launch.image is not None:
            return None
        facts = (cache.identity, build.program, build.form, build.version)
        key = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        return EngineSlots(store, key, cache, order.placement.recipe.parallel, order.name)


class LlamaEngine(ServerEngine):
    """One llama.cpp process that serves one model; `on_illegal_instruction` is called if it dies of one.

    Its `slots` are saved before it is stopped in peace, and restored by the next one.
    """

    # One thread samples for all slots: a grammar that takes it for ever leaves /health answering.
    _queue_path = _SLOTS

    def __init__(
        self,
        started: Started,
        build: EngineBuild,
        on_illegal_instruction: Callable[[], None] | None = None,
        slots: EngineSlots | None = None,
    ) -> None:
        super().__init__(started, build)
        self._on_illegal_instruction = on_illegal_instruction
        self._slots = slots
        self._serves = False
        self._report: EngineReport | None = None

    async def busy_slots(self) -> int | None:
        """Count the slots that are generating; None if unknown."""
        answer = await probe_ok(self.endpoint, _SLOTS, timeout_s=_SLOTS_TIMEOUT_S)
        if answer is None:
            return None
        try:
            return sum(bool(slot["is_processing"]) for slot in json.loads(answer.body))
        except (ValueError, KeyError, TypeError):
            return None

    def report(self) -> EngineReport | None:
        """Return the bytes that the engine reports to have taken; None if it does not report them."""
        if self._report is not None:
            return self._report
        report = parse_report(self._log.read(_LOAD_LOG_BYTES).splitlines())
        if report is not None and any(device.parts.compute for device in report.devices):
            # Compute buffers come last. The report is kept, since the log may be rotated.
            self._report = report
        return report

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when it is ready and has the slots that were saved of the engine before it."""
        await super().wait_ready(timeout_s)
        if self._slots is not None:
            await self._slots.restore(self.endpoint)
        self._serves = True

    async def stop(self, grace_s: float) -> None:
        """Save its slots, unless there is no grace, and stop it."""
        if self._slots is not None and self._serves and grace_s > 0 and not self.ended:
            self._serves = False
            await self._slots.save(self.endpoint)
        await super().stop(grace_s)

    def _diagnose(self, returncode: int, *, was_ready: bool) -> Diagnosis:
        """As for any server; a build that died of an illegal instruction is remembered."""
        if returncode == -signal.SIGILL and self._on_illegal_instruction is not None:
            self._on_illegal_instruction()
        return super()._diagnose(returncode, was_ready=was_ready)

    async def _check(self) -> None:
        """Check that the engine uses its planned GPUs: it silently continues with fewer."""
        report = await self._report_soon()
        if report is not None and self.order.parts:
            report = without_lent(report)
        if report is not None and (missing := missing_devices(visible_devices(self.order), report)):
            names = ", ".join(device.label for device in missing)
            raise EngineLacksDevice(
                f"{self._name} was planned on {names}, which the engine did not find",
                hint=f"See `cotenant gpus`, `cotenant engine list` and the engine's log, {self._log.path}.",
            )

    async def _report_soon(self) -> EngineReport | None:
        """Read the report; the engine's log thread may still be writing it."""
        deadline = self._loop.time() + _REPORT_WITHIN_S
        while True:
            report = self.report()
            if self._report is not None or self._loop.time() >= deadline:
                return report
            await asyncio.sleep(_REPORT_POLL_S)
