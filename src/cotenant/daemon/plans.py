"""Plans that a client requests without loading anything: of served models or of files, on any devices."""

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from cotenant.clock import Clock
from cotenant.concurrency.thread_gate import ThreadGate
from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.config.model_file_cache import Library
from cotenant.config.models_dir import find_projector
from cotenant.config.names import clean_name
from cotenant.daemon.core.fleet import Fleet, only_allowed
from cotenant.domain.decisions import DeviceStatus
from cotenant.domain.devices import Inventory, Reading
from cotenant.domain.errors import BadDeviceSpec, BadRequest, QueueFull, UnsupportedModelFile
from cotenant.domain.models import ModelKind, check_recipe, with_micro_batch
from cotenant.domain.nodes import FileState, LoadCost
from cotenant.domain.placements import Budget, PlanAnswer, PlanQuery
from cotenant.domain.vendors import InventorySource
from cotenant.hardware.gpus.described import DescribedProbe
from cotenant.interfaces import Operator
from cotenant.model_files import load_model
from cotenant.planning.advice import plan
from cotenant.planning.budgets import BudgetRules, budgets, host_budget

_MAX_WAITING = 16
_NO_DEVICES = Inventory(InventorySource.NVML, (), {}, problems=("the driver reports no GPU now",))


@dataclass(frozen=True, slots=True)
class Plans:
    """A Planner for the active configuration and the last Readings of the cards.

    It reads only files in the folders of configured models: an answer about other files would reveal what is
    on the machine.
    """

    _configuration: Callable[[], Configuration]
    _cards: Callable[[], Inventory | None]
    _operator: Operator
    _our_pids: Callable[[], Collection[int]]
    _clock: Clock
    _by_engine: bool = False
    _gate: ThreadGate = field(default_factory=lambda: ThreadGate(_full, waiting=_MAX_WAITING), init=False)

    async def plan(self, asked: PlanQuery) -> PlanAnswer:
        """Place a model on devices, or return why it does not fit and what would fit.

        Raises UnknownModel, ModelFileError, BadRequest, BadDeviceSpec, BadRecipe, BadSplit, and QueueFull if
        many plans wait already.
        """
        configuration = self._configuration()
        rules = _rules(asked, configuration.devices.rules)
        costs = {} if asked.model is None or asked.gpus else self._load_costs(asked.model)
        inventory = self._described(asked.gpus) if asked.gpus else self._current(asked, rules)
        # A plan takes milliseconds, or seconds for a client that wants it to: neither requests to models nor
        # loads, which use the loop's threads, must wait for that.
        return await self._gate.run(
            partial(_plan, asked, configuration, inventory, rules, self._by_engine, costs)
        )

    def _load_costs(self, name: str) -> Mapping[str, LoadCost]:
        return next((each.load_costs for each in self._operator.statuses() if each.name == name), {})

    def _described(self, spec: str) -> Inventory:
        try:
            return DescribedProbe(self._clock, spec, files=False).inventory()
        except BadDeviceSpec as error:
            hint = error.hint.replace(", or a YAML file's path", "")
            raise BadDeviceSpec(error.message, hint=hint) from None

    def _current(self, asked: PlanQuery, rules: BudgetRules) -> Inventory:
        found = self._cards() or _NO_DEVICES
        statuses = {status.uuid: status for status in self._operator.devices()}
        ours = frozenset(self._our_pids())
        readings = {
            device.id: _without_ours(found, found.reading(device), status, ours)
            if not asked.beside_loaded
            else _with_ours(
                found.reading(device),
                status,
                device.reserve(self._configuration().devices.rules.reserve_bytes),
            )
            for device in found.devices
            if (status := statuses.get(device.id)) is not None
        }
        return replace(found, readings={**found.readings, **readings})


def _full() -> QueueFull:
    return QueueFull("many plans are being computed", hint="Try again later.")


def _plan(
    asked: PlanQuery,
    configuration: Configuration,
    inventory: Inventory,
    rules: BudgetRules,
    by_engine: bool,
    costs: Mapping[str, LoadCost],
) -> PlanAnswer:
    subject = _entry(asked, configuration)
    if subject.shape.kind is ModelKind.PROJECTOR:
        raise UnsupportedModelFile(
            f"{subject.name} is a vision projector, not a model of its own",
            hint="Choose the model that it goes with.",
        )
    changed: dict[str, Any] = dict(asked.recipe)
    recipe = with_micro_batch(replace(subject.recipe, **changed), subject.shape.kind)
    check_recipe(recipe)
    anywhere = subject if asked.gpus is None else replace(subject, gpus=(), nodes=())
    found = tuple(_soonest_first(only_allowed(budgets(inventory, rules), anywhere), costs))
    request = replace(subject.request, recipe=recipe)
    return PlanAnswer(
        subject.name,
        None if subject.path is None else str(subject.path),
        subject.shape,
        recipe,
        found,
        plan(request, found, rules, host_budget(inventory, rules), by_engine=by_engine),
        rules.reserve_bytes,
        rules.min_budget_bytes,
        rules.overhead_bytes,
        None if subject.projector_path is None else str(subject.projector_path),
        asked.gpus,
        asked.gpus or configuration.devices.gpus,
        inventory.problems,
        not subject.projector_path and bool(subject.path and find_projector(subject.path, Library())),
        by_engine,
        subject.companions,
        costs,
    )


def _soonest_first(found: Sequence[Budget], costs: Mapping[str, LoadCost]) -> list[Budget]:
    """Return the budgets with those of machines first where a model loads soonest, without those that cannot.

    Among equals, and machines that have not reported its files, the order stays.
    """

    def cost(budget: Budget) -> LoadCost | None:
        return costs.get(budget.device.node or "")

    left = [
        replace(budget, budget_bytes=0, left_out=known.why)
        if (known := cost(budget)) is not None and known.seconds is None
        else budget
        for budget in found
    ]

    def key(budget: Budget) -> tuple[bool, float]:
        known = cost(budget)
        if known is None:
            return False, math.inf
        return known.state is FileState.ABSENT, math.inf if known.seconds is None else known.seconds

    return sorted(left, key=key)


def _entry(asked: PlanQuery, configuration: Configuration) -> ModelEntry:
    """Return the model to plan, with the defaults of its plan."""
    if asked.model is not None:
        fleet = Fleet.of(configuration.models)
        return fleet.entries[fleet.resolve(asked.model)]
    recipe = configuration.defaults.recipe
    if asked.shape is not None:
        return ModelEntry(asked.name, None, recipe, asked.shape, (), (), None, asked.projector)
    if asked.path is None:
        raise BadRequest("no model is named", hint="Give model, path or headers.")
    path = _reachable(asked.path, configuration)
    shape, projector = load_model(path), find_projector(path, Library())
    entry = ModelEntry(clean_name(path), path, recipe, shape, (), ())
    if projector is None:
        return entry
    return replace(entry, projector_path=projector.path, projector=projector.shape.projector)


def _reachable(text: str, configuration: Configuration) -> Path:
    """Return a path within the folders that models are served from. Raises BadRequest for any other."""
    # Normalised before it is opened: the meaning of `..` must not depend on links.
    path = Path(os.path.normpath(os.path.expanduser(text)))
    folders = sorted(_folders(configuration))
    if not path.is_absolute() and configuration.models_dir is not None:
        path = Path(os.path.normpath(configuration.models_dir.expanduser() / path))
    if "\0" not in text and any(path.is_relative_to(folder) for folder in folders):
        # Of other files not even their existence is told.
        served = any(path == entry.path for entry in configuration.models)
        if served or path.suffix.lower() == ".gguf" or (path / "config.json").is_file():
            return path
        raise BadRequest(
            f"{text[:200]!r} names no GGUF file, nor a folder with a config.json",
            hint="Give a file whose name ends with .gguf.",
        )
    listed = ", ".join(map(str, folders)) or "none"
    raise BadRequest(
        f"{text[:200]!r} is in no folder that models are served from",
        hint=f"Folders: {listed}. Send the file's header instead, or use `cotenant plan --model FILE`.",
    )


def _folders(configuration: Configuration) -> set[Path]:
    folders = {file.parent for entry in configuration.models for file in (entry.path, *entry.parts) if file}
    if configuration.models_dir:
        folders.add(configuration.models_dir)
    return {Path(os.path.abspath(folder.expanduser())) for folder in folders}


def _rules(asked: PlanQuery, rules: BudgetRules) -> BudgetRules:
    names = ("reserve_bytes", "min_budget_bytes", "overhead_bytes")
    given = {name: value for name in names if (value := getattr(asked, name)) is not None}
    if asked.overhead_bytes is not None:
        given["overheads"] = {}
    return replace(rules, **given)


def _without_ours(
    inventory: Inventory, reading: Reading, status: DeviceStatus, ours: frozenset[int]
) -> Reading:
    """Return what a device would show if no model of ours were loaded."""
    if not inventory.source.is_live or reading.free_bytes is None or status.total_bytes is None:
        # The Reading does not show what our engines take.
        return reading
    free = max(reading.free_bytes, status.total_bytes - (status.foreign_bytes or 0))
    others = None if reading.processes is None else tuple(p for p in reading.processes if p.pid not in ours)
    return replace(reading, free_bytes=free, processes=others)


def _with_ours(reading: Reading, status: DeviceStatus, reserve_bytes: int) -> Reading:
    """Return what is free in addition to our models, as if those still loading had all of their memory."""
    if reading.free_bytes is None:
        return reading
    return replace(reading, free_bytes=min(reading.free_bytes, status.plannable_bytes + reserve_bytes))
