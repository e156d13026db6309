"""`cotenant plan --served NAME`: where a running daemon would load a model, on any of its machines."""

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import Any

from cotenant.cli.client import Daemon
from cotenant.cli.ps import device_label
from cotenant.cli.table import print_result
from cotenant.domain.errors import UsageError
from cotenant.domain.models import Recipe
from cotenant.domain.nodes import FileState, LoadCost, costs_text
from cotenant.domain.settings import settings_of
from cotenant.domain.units import format_bytes

_DOES_NOT_FIT = 3


def run(args: argparse.Namespace) -> int:
    """Print the daemon's plan. Raises UsageError, DaemonSilent, or what the daemon answers."""
    recipe, given = {}, {*getattr(args, "given", ())}
    for each in settings_of(Recipe):
        name = str(each.flag)
        if name in given:
            given.remove(name)
            recipe[each.name] = getattr(args, name)
    gpus = args.gpus if args.gpus != (os.environ.get("COTENANT_GPUS") or None) else None
    others = {"mmproj": args.mmproj, "draft": args.draft, "lora": args.lora, "gpus": gpus}
    given |= {name for name, value in others.items() if value}
    if args.model or args.model_path:
        raise UsageError(
            "--served names a model of the daemon, and a file is given", hint="Give one of them."
        )
    if given:
        flag = f"--{min(given).replace('_', '-')}"
        raise UsageError(
            f"{flag} does not go with --served, which plans a model as the daemon serves it",
            hint="Of all flags those of the recipe do, such as --n-ctx.",
        )
    plan = Daemon(args).send("/api/plan", {"model": args.served, "recipe": recipe})
    print_result(args, plan, _lines(plan))
    return 0 if plan["fits"] else _DOES_NOT_FIT


def _lines(plan: Mapping[str, Any]) -> Iterator[str]:
    fits = f"{plan['n_gpu_layers']} of {plan['n_layers'] + 1} layers on GPUs, the output layer counted"
    yield f"{plan['model']}: {fits}" if plan["fits"] else f"{plan['model']} does not fit: {plan['refusal']}"
    width = max((len(device_label(device)) for device in plan["devices"]), default=0)
    for device in plan["devices"]:
        yield f"  {device_label(device):<{width}}  {_use(device)}"
    costs = {
        node: LoadCost(cost["seconds"], FileState(cost["state"]), cost["why"])
        for node, cost in plan["load_costs"].items()
    }
    if costs:
        yield f"Where its files are: {costs_text(costs)}"
    yield from (f"Warning: {warning}" for warning in plan["warnings"])
    yield from (f"What would fit: {remedy['text']}" for remedy in plan["remedies"])


def _use(device: Mapping[str, Any]) -> str:
    if device["left_out"]:
        return f"left out: {device['left_out']}"
    budget = format_bytes(device["budget_bytes"])
    if not device["planned_bytes"]:
        return f"not used, {budget} may be"
    layers = f", layers {device['layers'][0]}-{device['layers'][1]}" if device["layers"] else ""
    return f"{format_bytes(device['planned_bytes'])} of {budget} that may be used{layers}"
