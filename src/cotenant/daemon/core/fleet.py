"""The models served, as the scheduler and the engines need them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from cotenant.analysis.footprint import restorable_token_bytes
from cotenant.config.configuration import ModelEntry
from cotenant.domain.devices import Device, unclear_index
from cotenant.domain.engine_kinds import EngineKind, PlanMethod
from cotenant.domain.errors import BadSplit, UnknownDevice, UnknownModel
from cotenant.domain.launching import SlotCache
from cotenant.domain.models import ModelKind, Recipe, SplitPolicy
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.residencies import copy_name
from cotenant.domain.settings import settings_of
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.device_needs import Fit
from cotenant.planning.over_machines import place_over_machines
from cotenant.planning.planner import PlanRequest, leave_to_engine, place, takes_what_there_is
from cotenant.scheduling.model_spec import ModelSpec

if TYPE_CHECKING:
    from cotenant.domain.requests import RequestRules
    from cotenant.interfaces import EngineHost

_LOAD_BYTES_PER_S = 1_000_000_000
_LOAD_AT_LEAST_S = 1.0
_OF_CACHE: Final = tuple(each.name for each in settings_of(Recipe) if each.group == "context")
"""Which fields of a recipe a cache depends on: those of the layout say only where it is."""
LOCAL = "local"
"""A name that any client may use while exactly one model is served."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A command that leases memory, as a model that no client may name, and what stands for its engine."""

    entry: ModelEntry
    host: EngineHost


@dataclass(frozen=True, slots=True)
class Fleet:
    """The models by name, every name that clients may use, and the rules of requests that use it."""

    entries: dict[str, ModelEntry]
    names: dict[str, str]
    rules: dict[str, RequestRules]

    @classmethod
    def of(cls, models: Sequence[ModelEntry]) -> Fleet:
        """Collect models; if there is only one, `local` also means it."""
        names = {alias: entry.name for entry in models for alias in entry.aliases}
        if len(models) == 1:
            names.setdefault(LOCAL, models[0].name)
        names |= {name: entry.name for entry in models for name in (*entry.variants, entry.name)}
        entries = {entry.name: entry for entry in models}
        rules = {name: entries[own].rules for name, own in names.items()}
        rules |= {name: each for entry in models for name, each in entry.variants.items()}
        return cls(entries, names, {name: each for name, each in rules.items() if each})

    def resolve(self, name: str) -> str:
        """Return the model that a client's name means. Raises UnknownModel with the list."""
        found = self.names.get(name)
        if found is None:
            raise UnknownModel.among(name, self.entries)
        return found

    def resolve_copy(self, name: str) -> str:
        """Return the copy that an operator's `m#2` means, `m` being any name; else as `resolve`."""
        model, mark, number = name.partition("#")
        if not mark or not number.isdecimal() or number == "1":
            return self.resolve(model if number == "1" else name)
        return copy_name(self.resolve(model), int(number))


RpcVersion: TypeAlias = Callable[[ModelEntry, str | None], str | None]
"""The version of the llama.cpp on a machine that can share a model with others; None if there is none."""


def spec_of(
    entry: ModelEntry,
    rules: BudgetRules,
    load_s: float | None,
    *,
    use_fit_params: bool = False,
    rpc_version: RpcVersion = lambda entry, node: "",
) -> ModelSpec:
    """Describe a model to the scheduler; its load time is estimated from its size until one is known."""
    recipe, request = entry.recipe, entry.request
    lay_out = leave_to_engine if use_fit_params else place

    def fit(budgets: Sequence[Budget]) -> Placement | Refusal:
        unclear = _unclear(entry, [budget.device for budget in budgets])
        if unclear is not None:
            return Refusal(entry.name, f"`gpus: [{', '.join(entry.gpus)}]` is not clear: {unclear}")
        return lay_out_or_refuse(only_allowed(budgets, entry))

    def lay_out_or_refuse(budgets: Sequence[Budget]) -> Placement | Refusal:
        try:
            return lay_out(request, budgets, rules)
        except BadSplit as error:
            # It is for another number of GPUs than are usable now, or than this machine has.
            return Refusal(entry.name, error.message)

    def across(budgets: Sequence[Budget]) -> Placement | Refusal:
        return _over_machines(request, only_allowed(budgets, entry), rules, partial(rpc_version, entry))

    def elsewhere(devices: Sequence[Device]) -> Fit | None:
        missing = any(not any(may_use([name], device) for device in devices) for name in entry.gpus)
        nodes_alone = replace(entry, gpus=())
        return (lambda those: lay_out_or_refuse(only_allowed(those, nodes_alone))) if missing else None

    def allows(device: Device) -> bool:
        return may_use(entry.gpus, device) and may_be_on(entry.nodes, device)

    may_move = bool(entry.gpus) and entry.gpus_fallback and recipe.engine is not EngineKind.OLLAMA
    spread = takes_what_there_is(recipe, entry.shape) or recipe.split_policy is not SplitPolicy.FILL
    return ModelSpec(
        entry.name,
        fit,
        allows=allows if entry.gpus or entry.nodes else None,
        elsewhere=elsewhere if may_move else None,
        is_unclear=(lambda devices: _unclear(entry, devices) is not None)
        if any(name.isdecimal() for name in entry.gpus)
        else None,
        across=across if entry.across_nodes else None,
        together=spread or bool(recipe.tensor_split) or not recipe.smart_split,
        slots=recipe.parallel,
        keep_alive_s=entry.keep_alive_s,
        pinned=entry.pinned,
        preload=entry.preload,
        priority=entry.priority,
        copies=entry.copies,
        load_s=load_s or guessed_load_s(entry.shape.tensor_bytes),
        seen_bytes=entry.stated_bytes if recipe.engine.traits.planning is PlanMethod.WHOLE else None,
    )


def _over_machines(
    request: PlanRequest,
    budgets: Sequence[Budget],
    rules: BudgetRules,
    version_on: Callable[[str | None], str | None],
) -> Placement | Refusal:
    """Place a model over machines whose llama.cpp can share one, and is the same."""
    versions = {node: version_on(node) for node in dict.fromkeys(b.device.node for b in budgets)}
    refusal: Refusal | None = None
    for version in dict.fromkeys(filter(lambda each: each is not None, versions.values())):
        alike = [budget for budget in budgets if versions[budget.device.node] == version]
        found = place_over_machines(request, alike, rules)
        if isinstance(found, Placement):
            return found
        refusal = refusal or found
    found = refusal or place(request, budgets, rules)
    lacking = [str(node) for node, version in versions.items() if version is None]
    if lacking and isinstance(found, Refusal):
        found = replace(found, reason=f"{found.reason}; {', '.join(lacking)}: no llama.cpp with RPC")
    if len({*versions.values()} - {None}) > 1 and isinstance(found, Refusal):
        each = ", ".join(f"{node} has {version}" for node, version in versions.items() if version)
        found = replace(
            found, reason=f"{found.reason}; only machines with one llama.cpp share a model: {each}"
        )
    return found


def guessed_load_s(size: int) -> float:
    """Estimate the seconds that so many bytes take to load, if no load has been seen yet."""
    return max(_LOAD_AT_LEAST_S, size / _LOAD_BYTES_PER_S)


def as_learned(entry: ModelEntry, seen_bytes: int | None) -> ModelEntry:
    """Return an entry planned by the bytes that it was measured to take, unless the operator states them."""
    stated = entry.stated_bytes is not None and not entry.stated_is_guess
    return entry if seen_bytes is None or stated else replace(entry, stated_bytes=seen_bytes)


def only_allowed(budgets: Sequence[Budget], entry: ModelEntry) -> list[Budget]:
    """Leave out the devices that a model's `gpus:` and `nodes:` do not name."""

    def allowed(budget: Budget) -> Budget:
        key = "gpus" if may_be_on(entry.nodes, budget.device) else "nodes"
        if key == "gpus" and may_use(entry.gpus, budget.device):
            return budget
        what = "devices" if key == "gpus" else "machines"
        return replace(budget, budget_bytes=0, left_out=f"the model's `{key}:` names other {what}")

    return [*map(allowed, budgets)]


def may_be_on(nodes: Sequence[str], device: Device) -> bool:
    """Whether a model's `nodes:` names the machine of a device, or any."""
    return not nodes or (device.node or "").lower() in nodes


def _unclear(entry: ModelEntry, devices: Sequence[Device]) -> str | None:
    """Return why an index in a model's `gpus:` means no certain device of its machines."""
    return unclear_index(entry.gpus, [device for device in devices if may_be_on(entry.nodes, device)])


def may_use(gpus: Sequence[str], device: Device) -> bool:
    """Whether a model's `gpus:` names a device, or any."""
    return not gpus or any(device.is_named(name) for name in gpus)


def wanting(models: Sequence[ModelEntry]) -> Callable[[Device], int]:
    """Return what counts the models that may use a device."""
    return lambda device: sum(each.recipe.n_gpu_layers != 0 and may_use(each.gpus, device) for each in models)


def find_device(devices: Sequence[Device], gpu: str) -> Device:
    """Return the device of an index, `b:0` of a node, a UUID or its beginning. Raises UnknownDevice."""
    found = [device for device in devices if gpu and may_use([gpu], device)]
    if len(found) != 1:
        there = ", ".join(
            device.label if device.node is None else f"{device.spelling} ({device.label})"
            for device in devices
        )
        what = "names several GPUs" if found else "is no GPU of this daemon"
        raise UnknownDevice(f"{gpu[:80]!r} {what}", hint=f"There are: {there}.")
    return found[0]


def slot_cache(entry: ModelEntry, recipe: Recipe) -> SlotCache | None:
    """Return what saved slots of a model depend on; None if its engine cannot restore them.

    llama.cpp refuses it for models with a projector, and does not save what a draft or an adapter adds.
    """
    alone = entry.projector_path is None and not [*entry.companions.files()]
    if recipe.engine is not EngineKind.LLAMA_CPP or entry.shape.kind is not ModelKind.TEXT or not alone:
        return None
    per_token = restorable_token_bytes(entry.shape, recipe)
    if per_token is None:
        return None
    cache = [getattr(recipe, name) for name in _OF_CACHE]
    facts = (str(entry.path), entry.signature, cache, sorted(entry.env.items()), entry.args)
    return SlotCache(hashlib.sha256(repr(facts).encode()).hexdigest(), per_token)
