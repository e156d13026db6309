"""`cotenant plan`: where a model would go, without loading it; without a model, the budgets."""

import argparse
import json

from cotenant.cli.flags import read_inventory
from cotenant.cli.plan_input import (
    PlanInput,
    add_model_options,
    model_path,
    read_plan_input,
    read_recipe,
    read_rules,
)
from cotenant.cli.render import device_lines, recipe_line, result_lines
from cotenant.cli.table import print_result
from cotenant.domain.placements import Placement, Refusal
from cotenant.planning.budgets import budgets
from cotenant.planning.describe import budgets_as_json, plan_as_json

DOES_NOT_FIT = 3


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan, or the budgets when no model is given."""
    path = model_path(args)
    if path is None:
        read_recipe(args)
        rules, inventory = read_rules(args), read_inventory(args)
        found = budgets(inventory, rules)
        lines = [*device_lines(inventory, found, rules.order)]
        lines.append("Give a model to plan it: cotenant plan --model FILE")
        return print_result(args, {"devices": budgets_as_json(found)}, lines)
    given = read_plan_input(args, path)
    result = given.plan()
    if args.json:
        print_json(given, result)
    else:
        print_plan(given, result)
    return 0 if isinstance(result, Placement) else DOES_NOT_FIT


def print_plan(given: PlanInput, result: Placement | Refusal) -> None:
    """Print recipe, devices, the plan or the refusal, and warnings."""
    print(recipe_line(given.request.recipe, given.projector, given.request.projector))
    print(*device_lines(given.inventory, given.budgets, given.rules.order), sep="\n")
    print()
    print(*result_lines(result), sep="\n")


def print_json(given: PlanInput, result: Placement | Refusal, **more: object) -> None:
    """Print the plan's fixed JSON, with further fields."""
    described = plan_as_json(result, given.budgets, given.request.shape.n_layers)
    taken = given.request.projector
    described["projector"] = taken and {"path": str(given.projector), "bytes": taken.weights}
    print(json.dumps({**described, **more}, indent=2, ensure_ascii=False))
