"""`cotenant serve`: plan a model, load it, and answer OpenAI's API until it is stopped."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotenant.cli.doctor import machine_checks
from cotenant.cli.flags import add_setting, file_path, flag, is_given, kept_to
from cotenant.cli.plan import add_model_options, model_path, read_plan_input
from cotenant.cli.render import (
    analysis_lines,
    comparison_lines,
    device_lines,
    recipe_line,
    result_lines,
)
from cotenant.clock import SystemClock
from cotenant.config.configuration import DeviceSettings, ModelDefaults, ServerSettings
from cotenant.daemon.log_format import LogFormat, log_to_stderr
from cotenant.domain.devices import Inventory
from cotenant.domain.engine_kinds import PlanMethod
from cotenant.domain.errors import UnsupportedModelFile, UsageError
from cotenant.domain.models import check_fit_params
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.settings import setting_of, settings_of
from cotenant.domain.units import format_bytes, format_duration, parse_duration
from cotenant.domain.vendors import InventorySource
from cotenant.planning.budgets import BudgetRules, budgets
from cotenant.scheduling.model_spec import SchedulerSettings

if TYPE_CHECKING:
    from cotenant.analysis.calibration import Comparison
    from cotenant.config.configuration import Configuration, ModelEntry
    from cotenant.daemon.core.inputs import AfterReady
    from cotenant.interfaces import Engine, GpuProbe

_LOG = logging.getLogger("cotenant.serve")


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_serve_options(parser)
    parser.add_argument("--config", type=file_path, metavar="FILE", help="the configuration (cotenant.yaml)")
    flag(parser, "--models-dir", file_path, None, "FOLDER", "serve every GGUF in it")
    flag(
        parser,
        "--log-format",
        log_format,
        LogFormat.TEXT,
        "text|json",
        "form of the log; json: one object a line, and nothing on standard output",
    )


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the model, its recipe and the server."""
    add_model_options(parser)
    group = parser.add_argument_group("server")
    flag(group, "--name", str, "", "NAME", "name that clients use (default: the file's; `local` works too)")
    group.add_argument(
        "--api-key", action="append", default=[], metavar="KEY", help="key that clients must send"
    )
    for setting in settings_of(ServerSettings):
        if setting.group:
            add_setting(group, setting)
    add_setting(group, setting_of(SchedulerSettings, "max_queue"))
    add_setting(group, setting_of(SchedulerSettings, "max_loaded"))
    for name in ("timeout_s", "keep_alive_s"):
        add_setting(group, setting_of(ModelDefaults, name))
    engine = parser.add_argument_group("engine")
    flag(engine, "--llama-server", file_path, None, "FILE", "use this llama-server")
    flag(engine, "--load-timeout", parse_duration, "10m", "TIME", "how long a model may take to load")
    add_setting(engine, setting_of(DeviceSettings, "mps"))
    add_setting(engine, setting_of(DeviceSettings, "mps_group"))


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    log_to_stderr(args.log_format)
    path = model_path(args)
    if path is not None and (args.config or "models_dir" in getattr(args, "given", ())):
        what = "--config" if args.config else "--models-dir"
        raise UsageError(f"one model is given, and {what}, which names many", hint="Leave one of them out.")
    if path is not None:
        serve_model(args, path)
    else:
        _serve_configuration(args)
    return 0


def serve_model(args: argparse.Namespace, path: Path, after_ready: AfterReady | None = None) -> None:
    """Plan, load and serve one model file, and print the progress."""
    if path.is_dir():
        raise UnsupportedModelFile(
            f"{path} is a Hugging Face folder, which can be planned but not served yet",
            hint="Give a GGUF file: llama.cpp runs no other.",
        )
    from cotenant.hardware.gpus.inventory import probe

    given = read_plan_input(args, path, name=args.name or None)
    configuration = one_model(args, path)
    (entry,) = configuration.models
    use = tuple(str(device.id) for device in given.inventory.devices)
    configuration = replace(configuration, devices=replace(configuration.devices, use=use))
    gpus = probe(args.gpus, SystemClock())
    _serve(args, configuration, gpus, given.inventory, given.rules, after_ready, alone=entry)


def _serve_configuration(args: argparse.Namespace) -> None:
    """Serve every model of the configuration file, the environment and `--models-dir`."""
    from cotenant.config.layers import find_configuration
    from cotenant.config.model_file_cache import Library
    from cotenant.config.settings import read_configuration
    from cotenant.config.watch import Change
    from cotenant.hardware.gpus.inventory import probe

    path = find_configuration(args.config, os.environ)
    library = Library()

    def read(change: Change) -> Configuration:
        found = read_configuration(path, flags=_flags(args), library=library, unsettled=change.unsettled)
        for entry in found.models if args.use_fit_params else ():
            if entry.recipe.engine.traits.planning is PlanMethod.PER_LAYER:
                check_fit_params(entry.recipe, entry.name)
        return replace(found, devices=replace(found.devices, use=allotted)) if allotted else found

    allotted: tuple[str, ...] = ()
    configuration = read(Change())
    nothing = not configuration.models and configuration.models_dir is None and configuration.ollama is None
    if nothing and configuration.services is None:
        raise UsageError(
            "there is nothing to serve: no model is given, and no configuration names one",
            hint="Give a model, --models-dir FOLDER, or a cotenant.yaml (docs/configuration.md).",
        )
    devices = configuration.devices
    gpus = probe(devices.gpus, SystemClock())
    if configuration.nodes is not None:
        # This machine's GPUs are used if it is one of them: then its agent reports them.
        _serve(args, configuration, gpus, Inventory(InventorySource.HOST, (), {}), devices.rules, reread=read)
        return
    whole = gpus.inventory()
    inventory = kept_to(whole, list(devices.use), described=devices.gpus)
    if len(kept_to(whole, [], described=devices.gpus).devices) < len(whole.devices):
        # Later readings show all cards, whatever this process was allotted.
        allotted = tuple(device.id for device in inventory.devices)
        configuration = replace(configuration, devices=replace(devices, use=allotted))
    _serve(args, configuration, gpus, inventory, devices.rules, reread=read)


def _serve(
    args: argparse.Namespace,
    configuration: Configuration,
    gpus: GpuProbe,
    inventory: Inventory,
    rules: BudgetRules,
    after_ready: AfterReady | None = None,
    **how: Any,
) -> None:
    """Run the daemon; `how` are further fields of its DaemonInputs."""
    from cotenant.daemon.core.inputs import DaemonInputs
    from cotenant.daemon.core.settings import DaemonOptions
    from cotenant.daemon.main import run as run_daemon

    options = DaemonOptions(args.llama_server, args.use_fit_params, args.load_timeout)
    examine = machine_checks(args.llama_server)
    inputs = DaemonInputs(configuration, options, gpus, inventory, examine=examine, **how)
    tell = _log if getattr(args, "log_format", None) is LogFormat.JSON else _print
    run_daemon(inputs, _Terminal(inventory, budgets(inventory, rules), rules, tell), after_ready)


def _flags(args: argparse.Namespace) -> dict[str, object]:
    """Return the flags that were given and are settings."""
    return {
        **{name: getattr(args, name) for name in sorted(getattr(args, "given", ()))},
        "gpus": args.gpus,
        "devices": args.devices or None,
        "api_key": args.api_key or None,
    }


def one_model(args: argparse.Namespace, path: Path) -> Configuration:
    """Return the configuration of one model, which stays loaded, read as a file is. Raises BadSetting."""
    from cotenant.config.settings import read_configuration
    from cotenant.config.yaml_document import Document

    keep_alive = None if is_given(args, setting_of(ModelDefaults, "keep_alive_s")) else "forever"
    entry: dict[str, Any] = {"path": str(path), "preload": "true", "keep_alive": keep_alive}
    if args.mmproj:
        entry["mmproj"] = str(args.mmproj)
    if args.draft:
        entry["draft"] = str(args.draft)
    if args.lora:
        entry["lora"] = [asdict(adapter) for adapter in args.lora]
    folders = ("COTENANT_MODELS_DIR", "OLLAMA_MODELS")
    environment = {name: value for name, value in os.environ.items() if name not in folders}
    configuration = read_configuration(
        Document("", {"models": [entry]}), environment=environment, flags=_flags(args)
    )
    (served,) = configuration.models
    if args.name:
        # The flag allows any text, a file's entry fewer characters.
        served = replace(served, name=args.name)
    # The name that `serve MODEL` gave a file before it used that of `models_dir`.
    elif (former := re.sub(r"-\d+-of-\d+$", "", path.name.removesuffix(".gguf"))) != served.name:
        served = replace(served, aliases=(former,))
    return replace(configuration, models=(served,))


def log_format(text: str) -> LogFormat:
    """Return the form of the log that a flag names. Raises UsageError."""
    try:
        return LogFormat(text)
    except ValueError:
        hint = "COTENANT_LOG_FORMAT sets it too." if os.environ.get("COTENANT_LOG_FORMAT") else "See --help."
        raise UsageError(f"--log-format {text!r} is neither text nor json", hint=hint) from None


class _Terminal:
    """Tells the plan, the load and the address: on standard output, or in the log."""

    def __init__(
        self,
        inventory: Inventory,
        device_budgets: Sequence[Budget],
        rules: BudgetRules,
        tell: Callable[..., None],
    ) -> None:
        self._inventory = inventory
        self._budgets = device_budgets
        self._rules = rules
        self._tell = tell

    def planned(self, entry: ModelEntry, result: Placement | Refusal) -> None:
        self._tell(*analysis_lines(entry.path, entry.shape), "")
        self._tell(recipe_line(entry.recipe, entry.projector_path, entry.projector, entry.companions))
        self._tell(*device_lines(self._inventory, self._budgets, self._rules.order), "")
        self._tell(*result_lines(result))
        if isinstance(result, Placement):
            self._print_described()

    def loaded(self, engine: Engine, load_s: float, rows: tuple[Comparison, ...]) -> None:
        build = engine.build
        done = f"Loaded in {format_duration(load_s)} by {build.form} {build.version}, pid {engine.pid}."
        self._tell("", done)
        if rows:
            self._tell(*comparison_lines(rows, "Planned / reported by the engine"))
        else:
            self._tell("The engine did not report its memory; its log says why.")
        self._tell(f"Engine log: {engine.log_path}")

    def serving(self, address: str, configuration: Configuration) -> None:
        for problem in configuration.problems:
            self._tell(f"Warning: {problem}")
        if len(configuration.models) == 1 and configuration.path is None and configuration.models_dir is None:
            self._tell(f"Serving {configuration.models[0].name} at {address}/v1")
            return
        if configuration.nodes is None:
            self._tell(*device_lines(self._inventory, self._budgets, self._rules.order))
            self._print_described()
        else:
            self._tell("The GPUs are those of the machines that `cotenant nodes list` shows. Models:")
        for entry in configuration.models:
            size = format_bytes(entry.shape.tensor_bytes)
            aliases = f", also {', '.join(entry.names[1:])}" if entry.names[1:] else ""
            rules = ", pinned" if entry.pinned else ", preloaded" if entry.preload else ""
            self._tell(f"  {entry.name}: {entry.shape.quantisation or '?'}, {size}{aliases}{rules}")
        count = len(configuration.models)
        self._tell(f"Serving {count} model{'' if count == 1 else 's'} at {address}/v1")

    def _print_described(self) -> None:
        if any(device.described for device in self._inventory.devices):
            self._tell("The GPUs are described, not of this machine: engines run in host RAM, on the CPU.")


def _print(*lines: str) -> None:
    if lines:
        print(*lines, sep="\n", flush=True)


def _log(*lines: str) -> None:
    if text := "\n".join(lines).strip():
        _LOG.info("%s", text)
