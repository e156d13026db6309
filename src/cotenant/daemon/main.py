"""Runs the daemon: checks its inputs, binds its address, and serves until it is stopped."""

import asyncio
import resource
from dataclasses import replace

import uvloop

from cotenant.config.configuration import ModelEntry
from cotenant.daemon.core.inputs import AfterReady, DaemonInputs, StartReporter
from cotenant.daemon.core.settings import ApiKeys
from cotenant.daemon.cpu_fallback import place_on_this_machine
from cotenant.daemon.daemon import Daemon
from cotenant.daemon.nodes.parts import check_ray_is_there
from cotenant.daemon.past_runs import learned
from cotenant.domain.errors import DoesNotFit
from cotenant.domain.placements import Refusal
from cotenant.gateway.server import bind
from cotenant.planning.advice import plan
from cotenant.planning.budgets import budgets, host_budget
from cotenant.sharing.mps import MpsRules
from cotenant.state_dir import default_database
from cotenant.store.key_file import NAME
from cotenant.store.store import Store
from cotenant.store.writer import Writer


def run(inputs: DaemonInputs, reporter: StartReporter, after_ready: AfterReady | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a second one skips the grace period. SIGHUP reloads the configuration.

    `after_ready` is called with the address once requests are answered. Raises InsecureBind, PortTaken,
    DoesNotFit, MpsMissing, EngineError, BadSetting.
    """
    if inputs.configuration.nodes is not None:
        check_ray_is_there()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    server = inputs.configuration.server
    keys = ApiKeys(server, inputs.options.state_dir / NAME)
    devices, most = inputs.configuration.devices, inputs.configuration.scheduling.max_loaded
    mps = MpsRules.of_machine(devices.mps, devices.mps_group, most, inputs.options.state_dir)
    with bind(server.host, server.port) as sock:
        store = Store(Writer(inputs.configuration.database or default_database()))

        async def serve() -> None:
            try:
                past = await store.journal.past_runs(inputs.configuration.devices.rules.overhead_bytes)
                adjusted = replace(inputs, configuration=learned(inputs.configuration, past))
                if adjusted.alone is not None:
                    _report_plan(adjusted, adjusted.alone, reporter)
                daemon = Daemon(adjusted, reporter, keys, sock, store, mps, past)
                await daemon.serve(after_ready)
            finally:
                await store.close()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())


def _report_plan(inputs: DaemonInputs, entry: ModelEntry, reporter: StartReporter) -> None:
    rules = inputs.configuration.devices.rules
    found, host = budgets(inputs.inventory, rules), host_budget(inputs.inventory, rules)
    result = plan(entry.request, found, rules, host, by_engine=inputs.options.use_fit_params)
    reporter.planned(entry, result)
    if isinstance(result, Refusal):
        raise DoesNotFit(f"{result.model} does not fit: {result.reason}", hint=_first_remedy(result))
    running = place_on_this_machine(entry.request, result, rules)
    if isinstance(running, Refusal):
        raise DoesNotFit(f"{running.model} does not fit in host RAM: {running.reason}")


def _first_remedy(refusal: Refusal) -> str:
    if not refusal.remedies:
        return "See `cotenant gpus` for what holds memory."
    remedy = refusal.remedies[0]
    return f"It would fit with {remedy.text}" + (f": {remedy.flags}" if remedy.flags else ".")
