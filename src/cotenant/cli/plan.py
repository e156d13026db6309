"""`cotenant plan`: where a model would go, without loading it; without a model, the budgets.

The planner's input, read from flags, is shared with `analyze`, `serve` and `demo`.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cotenant.analysis.drafts import draft_problem
from cotenant.analysis.shape import adapter_sizes
from cotenant.cli.client import add_daemon_options
from cotenant.cli.flags import (
    add_device_options,
    add_setting,
    add_settings,
    file_path,
    is_given,
    read_inventory,
    read_settings,
    switch,
)
from cotenant.cli.render import device_lines, recipe_line, result_lines
from cotenant.cli.table import print_result
from cotenant.config.companions import adapters
from cotenant.config.configuration import ModelDefaults
from cotenant.config.model_file_cache import Library, ModelFile
from cotenant.config.models_dir import find_projector
from cotenant.config.names import clean_name
from cotenant.domain.devices import Inventory
from cotenant.domain.engines import Adapter, Companions
from cotenant.domain.errors import BadRecipe, UnsupportedModelFile, UsageError
from cotenant.domain.models import (
    ModelKind,
    ModelShape,
    Recipe,
    check_fit_params,
    check_recipe,
    with_micro_batch,
)
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.profiles import recipe_values
from cotenant.domain.settings import setting_of, settings_of
from cotenant.planning.advice import plan
from cotenant.planning.budgets import BudgetRules, budgets, host_budget
from cotenant.planning.describe import budgets_as_json, plan_as_json
from cotenant.planning.planner import PlanRequest

DOES_NOT_FIT = 3


@dataclass(frozen=True, slots=True)
class PlanInput:
    """A model file and its projector, the request to plan it, and the devices to plan it on."""

    path: Path
    request: PlanRequest
    inventory: Inventory
    budgets: tuple[Budget, ...]
    rules: BudgetRules
    projector: Path | None
    companions: Companions
    by_engine: bool

    def plan(self) -> Placement | Refusal:
        """Place it, also with regard to host RAM."""
        host = host_budget(self.inventory, self.rules)
        return plan(self.request, self.budgets, self.rules, host, by_engine=self.by_engine)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the model, by position or by flag, its projector, and every recipe and device flag."""
    parser.add_argument("model_path", nargs="?", type=file_path, metavar="MODEL", help="a GGUF file")
    parser.add_argument("--model", type=file_path, metavar="FILE", help="the same, as a flag")
    parser.add_argument(
        "--mmproj",
        type=file_path,
        metavar="FILE|none",
        help="the vision projector of the model (default: the one in its folder)",
    )
    parser.add_argument(
        "--draft",
        type=file_path,
        metavar="FILE",
        help="a smaller GGUF of the same vocabulary, which guesses tokens for the model",
    )
    parser.add_argument(
        "--lora",
        type=adapter_option,
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="a LoRA adapter of the model, and how much of it is added; may be given again",
    )
    add_device_options(parser)
    add_setting(parser, setting_of(ModelDefaults, "profile"))
    add_settings(parser, [*settings_of(Recipe), *settings_of(BudgetRules)])
    switch(parser, "--use-fit-params", False, "leave layers and split to llama.cpp's own fitting")


def adapter_option(text: str) -> Adapter:
    """Read `FILE` or `FILE:SCALE`. Raises BadSetting."""
    path, colon, scale = text.rpartition(":")
    (found,) = adapters.read([{"path": path, "scale": scale} if colon else text])
    return Adapter(found.path, found.scale)


def read_recipe(args: argparse.Namespace) -> Recipe:
    """Build the Recipe that the flags describe. Raises BadRecipe for flags that contradict each other.

    A micro-batch larger than the batch is cut to it, as llama.cpp does.
    """
    values = read_settings(args, Recipe)
    given = {each.name: values[each.name] for each in settings_of(Recipe) if is_given(args, each)}
    if given.get("smart_split") and values["tensor_split"]:
        raise BadRecipe(
            "--smart-split and --tensor-split exclude each other",
            hint="Leave --smart-split out to split manually.",
        )
    recipe = with_micro_batch(Recipe(**{**values, **recipe_values(args.profile, given)}))
    check_recipe(recipe)
    if args.use_fit_params:
        check_fit_params(recipe)
    return recipe


def read_rules(args: argparse.Namespace) -> BudgetRules:
    """Build the BudgetRules that the flags describe."""
    return BudgetRules(**read_settings(args, BudgetRules))


def model_path(args: argparse.Namespace) -> Path | None:
    """Return the model named by flag or by position. Raises UsageError for both at once."""
    if args.model and args.model_path:
        raise UsageError(
            f"two models are given: {args.model_path} and {args.model}", hint="Give one, either way."
        )
    path: Path | None = args.model or args.model_path
    return path


def read_plan_input(args: argparse.Namespace, path: Path, *, name: str | None = None) -> PlanInput:
    """Read the model's header and the devices. Raises ModelFileError, UsageError."""
    from cotenant.model_files import load_model, open_header

    recipe, rules = read_recipe(args), read_rules(args)
    shape = load_model(path)
    for adapter in args.lora:
        shape = adapter_sizes(open_header(Path(adapter.path))).on(shape)
    if shape.kind is ModelKind.PROJECTOR:
        raise UnsupportedModelFile(
            f"{path} is a vision projector, not a model of its own", hint="Give it with --mmproj."
        )
    projector = _projector(args, path)
    projector_needs = None if projector is None else projector.shape.projector
    inventory = read_inventory(args)
    return PlanInput(
        path=path,
        request=PlanRequest(
            name or clean_name(path),
            shape,
            with_micro_batch(recipe, shape.kind),
            projector_needs,
            draft=_draft(args, shape),
        ),
        inventory=inventory,
        budgets=budgets(inventory, rules),
        rules=rules,
        projector=None if projector is None else projector.path,
        companions=Companions(draft=args.draft and str(args.draft), adapters=tuple(args.lora)),
        by_engine=args.use_fit_params,
    )


def _projector(args: argparse.Namespace, path: Path) -> ModelFile | None:
    if args.mmproj is None:
        return find_projector(path, Library())
    if str(args.mmproj) == "none":
        return None
    projector = Library().open(args.mmproj)
    if not projector.is_projector:
        raise UnsupportedModelFile(
            f"{args.mmproj} is not a vision projector", hint="--mmproj takes an mmproj file."
        )
    return projector


def _draft(args: argparse.Namespace, shape: ModelShape) -> ModelShape | None:
    if args.draft is None:
        return None
    draft = Library().open(args.draft).shape
    if (problem := draft_problem(shape, draft)) is not None:
        raise UnsupportedModelFile(f"{args.draft} {problem}", hint="Give a smaller model of the same family.")
    return draft


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    add_model_options(parser)
    parser.add_argument(
        "--served", metavar="NAME", help="ask the daemon where it would load a model that it serves"
    )
    add_daemon_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan, or the budgets when no model is given."""
    if args.served is not None:
        from cotenant.cli.nodes.plan import run as run_served

        return run_served(args)
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
    print(recipe_line(given.request.recipe, given.projector, given.request.projector, given.companions))
    print(*device_lines(given.inventory, given.budgets, given.rules.order), sep="\n")
    print()
    print(*result_lines(result), sep="\n")


def print_json(given: PlanInput, result: Placement | Refusal, **more: object) -> None:
    """Print the plan's fixed JSON, with further fields."""
    described = plan_as_json(result, given.budgets, given.request.shape.n_layers)
    taken = given.request.projector
    described["projector"] = taken and {"path": str(given.projector), "bytes": taken.weights}
    described["draft"] = given.companions.draft
    described["lora"] = [asdict(adapter) for adapter in given.companions.adapters]
    print(json.dumps({**described, **more}, indent=2, ensure_ascii=False))
