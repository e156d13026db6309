"""The models of `simulate`: those of the configuration, and those stated by size."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cotenant.cli.flags import file_path, kept_to, measured
from cotenant.cli.models import read_past_runs
from cotenant.domain.errors import BadSetting, CotenantError, StoreError
from cotenant.domain.records import PastRuns
from cotenant.domain.units import parse_bytes, parse_duration

if TYPE_CHECKING:
    from cotenant.config.configuration import Configuration, ModelDefaults
    from cotenant.domain.devices import Inventory
    from cotenant.simulation.variant import Tenant


EVERY_OTHER: Final = "*"
HERE: Final = "here"
_HINT: Final = (
    "Write NAME=20GiB, and after commas other facts if known: load=8s, slots=4, rate=60, keep_alive=5m."
)


@dataclass(frozen=True, slots=True)
class StatedModel:
    """A model stated as NAME=SIZE; None means the default of the configuration.

    `tokens_per_s` is the speed of one request; `load_s` the load time. An infinite `keep_alive_s` never
    unloads.
    """

    name: str
    bytes: int
    load_s: float | None = None
    slots: int | None = None
    tokens_per_s: float | None = None
    keep_alive_s: float | None = None
    timeout_s: float | None = None
    pinned: bool = False


def stated_model(text: str) -> StatedModel:
    """Read NAME=SIZE[,load=TIME][,slots=N][,rate=TOKENS/S][,keep_alive=TIME][,timeout=TIME][,pinned].

    Raises BadSetting.
    """
    name, equals, rest = text.partition("=")
    size, *more = rest.split(",")
    if not (equals and name.strip()):
        raise BadSetting(f"--model {text!r} has no size", hint=_HINT)
    try:
        model = StatedModel(name.strip(), parse_bytes(size))
        for word in filter(None, map(str.strip, more)):
            key, _, value = word.partition("=")
            if key not in _FACTS:
                raise BadSetting(f"{key!r} is not one of {', '.join(_FACTS)}", hint=_HINT)
            attribute, read = _FACTS[key]
            model = replace(model, **{attribute: read(value)})
    except CotenantError as error:
        raise BadSetting(f"--model {text!r}: {error.message}", hint=_HINT) from None
    if not model.bytes:
        raise BadSetting(f"--model {text!r}: the size must be above 0", hint=_HINT)
    return model


def stated_models(path: Path) -> list[StatedModel]:
    """Read a YAML file of `NAME: SIZE,load=8s` lines. Raises BadSetting."""
    from cotenant.config.yaml_document import read_document

    try:
        document = read_document(path)
    except BadSetting as error:
        raise BadSetting(
            error.message, hint="--sizes reads YAML: a line `NAME: 20GiB` for each model."
        ) from None
    found = []
    for name, value in document.settings.items():
        where = f"{path} line {document.line_of((name,))}"
        if not isinstance(value, str):
            raise BadSetting(f"{where}: {name} has no size", hint="Write `NAME: 20GiB,load=8s`.")
        try:
            found.append(stated_model(f"{name}={value}"))
        except BadSetting as error:
            raise BadSetting(f"{where}: {error.message.removeprefix('--model ')}", hint=error.hint) from None
    return found


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which models are served."""
    models = parser.add_argument_group("models")
    models.add_argument("--config", type=file_path, metavar="FILE", help="the configuration (cotenant.yaml)")
    models.add_argument("--models-dir", metavar="FOLDER", help="every GGUF in it is served")
    models.add_argument(
        "--model",
        metavar="NAME=SIZE",
        action="append",
        default=[],
        help="a model without its file: llama=20GiB, or llama=20GiB,load=8s,slots=4,rate=60 (tokens per "
        "second of a request); '*=8GiB' is every other name of the log",
    )
    models.add_argument(
        "--sizes", type=file_path, metavar="FILE", help="the same as YAML: `llama: 20GiB,load=8s`"
    )


def all_stated(args: argparse.Namespace) -> list[StatedModel]:
    """Return the models that the arguments state by size. Raises BadSetting."""
    return [*(stated_models(args.sizes) if args.sizes else ()), *map(stated_model, args.model)]


def inventory_of(spec: str, configuration: Configuration) -> Inventory:
    """Return described cards, or those of the configuration or this machine for HERE.

    Raises BadDeviceSpec, UnknownDevice.
    """
    devices = configuration.devices
    described = devices.gpus if spec == HERE else spec
    inventory = measured(described)
    return kept_to(inventory, list(devices.use), described=described) if spec == HERE else inventory


def configured_tenants(configuration: Configuration) -> tuple[Configuration, list[Tenant], str | None]:
    """Return the models of a configuration, as the daemon passes them to its scheduler.

    They have the load times and the memory of past runs, as the configuration returned; the last value says
    why past runs could not be read.
    """
    from cotenant.daemon.workload import tenant_of

    configuration, past, problem = learned_configuration(configuration)
    rules = configuration.devices.rules
    return configuration, [tenant_of(entry, rules, past) for entry in configuration.models], problem


def learned_configuration(configuration: Configuration) -> tuple[Configuration, PastRuns, str | None]:
    """Return the configuration with the overheads and the memory of past runs, what these are, and a problem.

    The problem says why past runs could not be read.
    """
    from cotenant.daemon.past_runs import learned, planned_by

    past, problem = PastRuns(), None
    try:
        if configuration.models:
            past = read_past_runs(configuration)
    except StoreError as error:
        problem = f"past runs could not be read: {error.message}"
    configuration = learned(configuration, past)
    models = tuple(planned_by(entry, past) for entry in configuration.models)
    return replace(configuration, models=models), past, problem


def stated_tenants(
    stated: Iterable[StatedModel], defaults: ModelDefaults, others: Iterable[str]
) -> list[Tenant]:
    """Return the models of stated sizes; `*` applies to each of the `others`."""
    models = {model.name: model for model in stated}
    every_other = models.pop(EVERY_OTHER, None)
    if every_other is not None:
        for name in others:
            models.setdefault(name, replace(every_other, name=name))
    return [_tenant(model, defaults) for model in models.values()]


def _tenant(model: StatedModel, defaults: ModelDefaults) -> Tenant:
    from cotenant.daemon.core.fleet import guessed_load_s
    from cotenant.scheduling.model_spec import ModelSpec
    from cotenant.simulation.models import fit_size
    from cotenant.simulation.variant import Tenant

    keep_alive_s = defaults.keep_alive_s if model.keep_alive_s is None else model.keep_alive_s
    spec = ModelSpec(
        model.name,
        fit_size(model.name, model.bytes),
        slots=model.slots or defaults.recipe.parallel,
        keep_alive_s=None if keep_alive_s == math.inf else keep_alive_s,
        pinned=model.pinned,
        load_s=model.load_s or guessed_load_s(model.bytes),
    )
    timeout_s = defaults.timeout_s if model.timeout_s is None else model.timeout_s
    return Tenant(spec, timeout_s, tokens_per_s=model.tokens_per_s)


def configuration_of(config: Path | None, models_dir: str | None, *, stated: bool) -> Configuration:
    """Read the configuration as `serve` does; if models are stated, only if one is named.

    Raises BadSetting.
    """
    from cotenant.config.layers import find_configuration
    from cotenant.config.settings import read_configuration

    asked = config is not None or models_dir is not None or not stated
    path = find_configuration(config, os.environ) if asked else None
    return read_configuration(path, flags={"models_dir": models_dir})


def keep_alive(text: str) -> float:
    """Read a keep-alive; infinity for never. Raises BadSetting or BadQuantity."""
    from cotenant.config.scalars import keep_alive as scalar

    return float(scalar.read(text))


def _slots(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text[:9]) <= 1024):
        raise BadSetting(f"{text!r} is not a number of slots from 1 to 1024", hint=_HINT)
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1e6:
        raise BadSetting(f"{text!r} is not a number of tokens per second", hint=_HINT)
    return rate


def _pinned(text: str) -> bool:
    if text:
        raise BadSetting("pinned takes no value", hint=_HINT)
    return True


_FACTS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "load": ("load_s", parse_duration),
    "slots": ("slots", _slots),
    "rate": ("tokens_per_s", _rate),
    "keep_alive": ("keep_alive_s", keep_alive),
    "timeout": ("timeout_s", parse_duration),
    "pinned": ("pinned", _pinned),
}
