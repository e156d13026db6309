"""Recorded requests with the models and cards to replay them on, as configured or with other settings."""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TextIO

from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.daemon.core.fleet import spec_of
from cotenant.daemon.core.settings import scheduler_settings
from cotenant.domain.devices import Device, DeviceOrder, Inventory
from cotenant.domain.errors import BadSetting
from cotenant.domain.models import MAX_PARALLEL, SplitPolicy
from cotenant.domain.records import PastRuns
from cotenant.domain.units import MIB, format_count, format_duration
from cotenant.planning.budgets import BudgetRules, budgets
from cotenant.scheduling.policy import POLICIES
from cotenant.simulation.advise import NEEDED_REQUESTS, Advice, Choices, Dimension, Key
from cotenant.simulation.models import Request
from cotenant.simulation.results import ReplayResult
from cotenant.simulation.trace import Trace, read_trace
from cotenant.simulation.variant import Tenant, Variant

_KEEP_ALIVES: Final = (30.0, 120.0, 300.0, 900.0, 3600.0, 14400.0, math.inf)
_OWN_KEEP_ALIVES: Final = (300.0, 3600.0, math.inf)
_LOG_BYTES: Final = 4 * MIB
_LOG_FILES: Final = 5
_MODELS: Final = 3
"""Of how many models settings of their own are tried: those whose requests wait longest in sum."""

DEFAULT_KEEP_ALIVE: Final = ("defaults", "keep_alive")
POLICY: Final = ("scheduling", "policy")
ORDER: Final = ("devices", "order")
SPLIT: Final = ("defaults", "split_policy")


def read_logs(names: Sequence[str], *, stretch: float = 1.0) -> Trace:
    """Read and merge logs; `-` is standard input. Raises BadTrace, BadSetting."""
    with ExitStack() as stack:
        return read_trace({name: _lines(stack, name) for name in names}, stretch=stretch)


def recorded(log: Path) -> Trace | None:
    """Read the end of the daemon's request log, some ten thousand requests; None if there are none yet.

    Files that it was rotated to are read too, if need be. Raises BadTrace, BadSetting.
    """
    content = b""
    for number in range(_LOG_FILES):
        file = log if number == 0 else log.with_name(f"{log.name}.{number}")
        try:
            with file.open("rb") as source:
                start = max(0, source.seek(0, os.SEEK_END) - (_LOG_BYTES - len(content)))
                source.seek(start)
                part = source.read()
        except FileNotFoundError:
            continue
        except OSError as error:
            why = f"{file} cannot be read: {error.strerror}"
            raise BadSetting(why, hint="The daemon must be able to read what it writes.") from None
        content = (part.partition(b"\n")[2] if start else part) + content
        if start:
            break
    # The daemon may be writing the last line.
    lines = content[: content.rfind(b"\n") + 1].decode("utf-8", "replace").splitlines()
    return read_trace({f"the end of {log}": lines}) if lines else None


def _lines(stack: ExitStack, name: str) -> Iterator[str]:
    """Yield the lines of a file. Raises BadSetting if it cannot be read."""
    try:
        yield from sys.stdin if name == "-" else stack.enter_context(_open(Path(name).expanduser()))
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise BadSetting(
            f"{name} cannot be read: {why}",
            hint="Give a log that `cotenant serve --request-log` writes, or CSV.",
        ) from None
    except UnicodeDecodeError:
        raise BadSetting(f"{name} is not text", hint="A request log and CSV are UTF-8.") from None


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def usable_cards(inventory: Inventory, rules: BudgetRules, spec: str = "here") -> tuple[Device, ...]:
    """Return the cards with their usable memory; the use of measured ones by anything now does not count.

    Raises BadSetting if there is none; `spec` names them in it.
    """
    if inventory.source.is_live:
        empty = {d.id: replace(inventory.reading(d), free_bytes=d.total_bytes) for d in inventory.devices}
        inventory = replace(inventory, readings=empty)
    found = budgets(inventory, rules)
    cards = tuple(replace(b.device, total_bytes=b.free_bytes) for b in found if b.left_out is None)
    if not cards:
        raise BadSetting(
            f"{spec}: no device can be used: {'; '.join(str(b.left_out) for b in found)}",
            hint="`cotenant plan` shows the budgets; devices.reserve_mib and min_budget_mib set them.",
        )
    return cards


def tenant_of(entry: ModelEntry, rules: BudgetRules, past: PastRuns, *, by_engine: bool = False) -> Tenant:
    """Return a model as the daemon passes it to its scheduler."""
    spec = spec_of(entry, rules, past.load_s(entry.name), use_fit_params=by_engine)
    return Tenant(spec, entry.timeout_s, preload=entry.preload)


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests by the models' own names, and what serves them at present.

    The configuration's models are planned by what they were measured to hold; `stated` are further ones,
    known by size only. `by_engine` leaves layouts to the engine.
    """

    requests: Sequence[Request]
    configuration: Configuration
    inventory: Inventory
    past: PastRuns = field(default_factory=PastRuns)
    stated: tuple[Tenant, ...] = ()
    by_engine: bool = False

    def variant(self, choices: Choices) -> Variant:
        """Return what would serve the requests with other settings. Raises BadSetting without a card."""
        settings, rules = self.configuration, self.configuration.devices.rules
        rules = replace(rules, order=choices.get(ORDER, rules.order))
        scheduling = scheduler_settings(settings)
        scheduling = replace(scheduling, policy=choices.get(POLICY, scheduling.policy))
        named = {tenant.spec.name for tenant in self.stated}
        tenants = [(tenant, tenant.spec.slots) for tenant in self.stated]
        for entry in settings.models:
            if entry.name not in named:
                changed = self._entry(entry, choices)
                tenant = tenant_of(changed, rules, self.past, by_engine=self.by_engine)
                tenants.append((tenant, entry.recipe.parallel))
        cards = usable_cards(self.inventory, rules)
        return Variant("", cards, scheduling, tuple(self._tenant(*each, choices) for each in tenants))

    def _entry(self, entry: ModelEntry, choices: Choices) -> ModelEntry:
        recipe, split = entry.recipe, choices.get(SPLIT)
        if split is not None and self._splits(entry):
            recipe = replace(recipe, split_policy=split)
        parallel = choices.get(("models", entry.name, "parallel"), recipe.parallel)
        return replace(entry, recipe=replace(recipe, parallel=parallel))

    def _tenant(self, tenant: Tenant, before: int, choices: Choices) -> Tenant:
        """Return a model with other settings; `before` is the present number of its slots."""
        spec = tenant.spec

        def own(name: str, otherwise: Any) -> Any:
            return choices.get(("models", spec.name, name), otherwise)

        keep_s: Any = math.inf if spec.keep_alive_s is None else spec.keep_alive_s
        if keep_s == self._default_keep_s:
            keep_s = choices.get(DEFAULT_KEEP_ALIVE, keep_s)
        keep_s, slots = own("keep_alive", keep_s), own("parallel", spec.slots)
        changed = replace(
            spec,
            keep_alive_s=None if keep_s == math.inf else keep_s,
            slots=slots,
            pinned=own("pinned", spec.pinned),
            preload=own("preload", spec.preload),
        )
        # More slots share one card: with twice as many, a request is taken to last √2 times as long.
        slowdown = math.sqrt(max(1.0, slots / before))
        return replace(tenant, spec=changed, preload=own("preload", tenant.preload), slowdown=slowdown)

    @property
    def _default_keep_s(self) -> float:
        keep_s = self.configuration.defaults.keep_alive_s
        return math.inf if keep_s is None else keep_s

    def _splits(self, entry: ModelEntry) -> bool:
        """Whether a model has the default split policy."""
        return entry.recipe.split_policy is self.configuration.defaults.recipe.split_policy

    def dimensions(self, waiting: Sequence[str]) -> list[Dimension]:
        """Return the settings to try, by the models that wait, the longest in sum first."""
        present = self.variant({})
        by_name = {tenant.spec.name: tenant for tenant in present.tenants}
        found = [
            _dimension(DEFAULT_KEEP_ALIVE, self._default_keep_s, _KEEP_ALIVES),
            _dimension(POLICY, present.settings.policy, tuple(POLICIES)),
        ]
        if len(present.cards) > 1:
            orders = [order for order in DeviceOrder if self.variant({ORDER: order}).cards != present.cards]
            found.append(_dimension(ORDER, self.configuration.devices.rules.order, orders))
            if any(self._splits(entry) and entry.path is not None for entry in self.configuration.models):
                split = self.configuration.defaults.recipe.split_policy
                found.append(_dimension(SPLIT, split, tuple(SplitPolicy)))
        pinned = [name for name, tenant in by_name.items() if tenant.spec.pinned]
        for name in waiting[:_MODELS]:
            spec, slots = by_name[name].spec, self._slots(by_name[name])
            keep_s = math.inf if spec.keep_alive_s is None else spec.keep_alive_s
            found += [
                _dimension(("models", name, "parallel"), spec.slots, slots),
                _dimension(("models", name, "keep_alive"), keep_s, _OWN_KEEP_ALIVES),
                _dimension(("models", name, "preload"), by_name[name].preload, (True, False)),
                _dimension(("models", name, "pinned"), spec.pinned, (True, False)),
            ]
        for name in pinned[:_MODELS]:
            if name not in waiting[:_MODELS]:
                found.append(_dimension(("models", name, "pinned"), True, (False,)))
        return [each for each in found if each.values]

    def _slots(self, tenant: Tenant) -> list[int]:
        """Return numbers of slots of which each still has context for the longest recorded request."""
        name, slots = tenant.spec.name, tenant.spec.slots
        longest = max(r.prompt_tokens + r.output_tokens for r in self.requests if r.model == name)
        entry = next((entry for entry in self.configuration.models if entry.name == name), None)
        most = MAX_PARALLEL if entry is None else min(MAX_PARALLEL, entry.recipe.n_ctx // max(1, longest))
        return [count for count in (2 * slots, 4 * slots) if count <= most]


def _dimension(key: Key, present: object, values: Sequence[object]) -> Dimension:
    return Dimension(key, present, [value for value in values if value != present])


def advice_as_json(advice: Advice, workload: Workload, left_out: Mapping[str, int]) -> dict[str, Any]:
    """Return advice as plain values: seconds, shares from 0 to 1, settings as they are written."""
    counts = Counter(request.model for request in workload.requests[-advice.requests :])
    return {
        "enough": advice.enough,
        "needed_requests": NEEDED_REQUESTS,
        **{name: getattr(advice, name) for name in ("requests", "span_s", "seed", "replays")},
        "left_out": dict(left_out),
        "text": _sentence(advice),
        "changes": [
            {
                "setting": ".".join(change.key),
                "before": _written(change.key, change.before),
                "after": _written(change.key, change.after),
                "gain": asdict(change.gain),
            }
            for change in advice.changes
        ],
        "gain": None if advice.gain is None else asdict(advice.gain),
        "yaml": _yaml(advice, workload),
        "present": _totals(advice.present),
        "proposed": _totals(advice.proposed),
        "models": [
            {"model": name, "requests": counts[name], "present_wait_s": before, "proposed_wait_s": after}
            for name, (before, after) in sorted((advice.waits or {}).items(), key=lambda each: -each[1][0])
        ],
        "tried": [
            {
                "setting": ".".join(each.key),
                "value": _written(each.key, each.value),
                "mean_wait_s": each.mean_wait_s,
                "hurt": each.hurt,
            }
            for each in advice.tried
        ],
    }


def _sentence(advice: Advice) -> str:
    if not advice.enough:
        count = format_count(advice.requests, "request")
        return f"Not enough log: {count} for the models served, and {NEEDED_REQUESTS} are needed."
    if advice.gain is None:
        waits = any(before > 0 for before, _ in (advice.waits or {}).values())
        if not waits:
            return "Nothing is recommended: no request waits with the present settings."
        return f"Nothing is recommended: none of {len(advice.tried)} other settings is better for certain."
    mean, low, high = (-each for each in (advice.gain.mean_s, advice.gain.high_s, advice.gain.low_s))
    range_ = f"{format_duration(low)} to {format_duration(high)}"
    count = format_count(len(advice.changes), "change")
    return f"{count}: requests are answered {format_duration(mean)} earlier on average ({range_})."


def _totals(result: ReplayResult | None) -> dict[str, Any] | None:
    if result is None:
        return None
    total = result.total
    shown = {"loads": total.loads, "evictions": total.evictions, "refused": total.refusals}
    return {"waits": asdict(total.waits), **shown, "held_share": result.held_share}


def _written(key: Key, value: object) -> str:
    """Write a value as in the configuration."""
    if key[-1] == "keep_alive" and isinstance(value, float):
        if value == math.inf:
            return "forever"
        for size, unit in ((3600, "h"), (60, "m")):
            if value >= size and value % size == 0:
                return f"{value / size:g}{unit}"
        return f"{value:g}s"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _yaml(advice: Advice, workload: Workload) -> str:
    """Return the lines of the configuration to change, each with its present value as a comment."""
    sections: dict[str, list[str]] = {}
    paths = {each.name: each.path for each in workload.configuration.models if each.from_folder}
    for change in sorted(advice.changes, key=lambda each: each.key[:-1]):
        section, *model, name = change.key
        lines = sections.setdefault(section, [])
        line = f"{name}: {_written(change.key, change.after)}  # now {_written(change.key, change.before)}"
        if model and f"  - name: {json.dumps(model[0])}" not in lines:
            lines.append(f"  - name: {json.dumps(model[0])}")
            if paths.get(model[0]) is not None:
                lines.append(f"    path: {json.dumps(str(paths[model[0]]))}")
        lines.append(f"    {line}" if model else f"  {line}")
    return "".join(f"{line}\n" for section, lines in sections.items() for line in (f"{section}:", *lines))
