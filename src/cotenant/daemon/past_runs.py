"""What loads of earlier runs change in the plans of this one."""

from dataclasses import replace

from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.daemon.core.fleet import as_learned
from cotenant.domain.records import PastRuns
from cotenant.planning.budgets import BudgetRules

_MARGIN = 1.05


def with_margin(seen_bytes: int) -> int:
    """Return the bytes to plan for a model that was measured to hold `seen_bytes`."""
    return int(_MARGIN * seen_bytes)


def learned(configuration: Configuration, past: PastRuns) -> Configuration:
    """Return the configuration with the overheads of past runs, unless the operator set one."""
    rules = configuration.devices.rules
    if rules.overhead_bytes != BudgetRules().overhead_bytes:
        return configuration
    devices = replace(configuration.devices, rules=replace(rules, overheads=past.overheads))
    return replace(configuration, devices=devices)


def planned_by(entry: ModelEntry, past: PastRuns) -> ModelEntry:
    """Return an entry as `serve` would plan it at its start."""
    seen = past.seen_bytes.get(entry.on_engine)
    return as_learned(entry, None if seen is None else with_margin(seen))
