"""`cotenant analyze`: what a model file contains, its sizes, and where it would be placed."""

import argparse
from collections.abc import Sequence

from cotenant.analysis.calibration import Comparison
from cotenant.cli.flags import file_path
from cotenant.cli.plan import (
    DOES_NOT_FIT,
    PlanInput,
    add_model_options,
    model_path,
    print_json,
    print_plan,
    read_plan_input,
)
from cotenant.cli.render import analysis_lines, comparison_lines
from cotenant.cli.table import attributes
from cotenant.domain.errors import UsageError
from cotenant.domain.models import ModelShape
from cotenant.domain.placements import Placement
from cotenant.planning.describe import parts_as_json


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument(
        "--json", action="store_true", help="print the analysis, the plan and what --verify finds as JSON"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="have the engine rehearse the plan without loading it, and compare part by part",
    )
    parser.add_argument("--llama-server", type=file_path, metavar="FILE", help="the engine to verify with")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print what the file contains, then its plan."""
    path = model_path(args)
    if path is None:
        raise UsageError("no model is given", hint="cotenant analyze --model FILE.gguf")
    given = read_plan_input(args, path)
    if args.verify and given.by_engine:
        raise UsageError(
            "--verify compares a plan with the engine's, and --use-fit-params leaves the plan to the engine",
            hint="Leave one of them out.",
        )
    result = given.plan()
    placed = result if isinstance(result, Placement) else None
    if args.json:
        more = {"verification": placed and _verified_as_json(given, placed, args)} if args.verify else {}
        print_json(given, result, analysis=_as_json(given.request.shape), **more)
    else:
        print(*analysis_lines(path, given.request.shape), sep="\n")
        print()
        print_plan(given, result)
        if args.verify and placed is not None:
            comparisons, engine = _verified(given, placed, args)
            print()
            print(*comparison_lines(comparisons, f"Planned / rehearsed by {engine}"), sep="\n")
    return DOES_NOT_FIT if placed is None else 0


def _verified_as_json(given: PlanInput, placement: Placement, args: argparse.Namespace) -> dict[str, object]:
    comparisons, engine = _verified(given, placement, args)
    devices = [
        {
            "uuid": row.device and row.device.id,
            "planned": parts_as_json(row.planned),
            "reported": row.reported and parts_as_json(row.reported),
            "difference_bytes": row.error_bytes,
        }
        for row in comparisons
    ]
    return {"engine": engine, "devices": devices}


def _verified(
    given: PlanInput, placement: Placement, args: argparse.Namespace
) -> tuple[Sequence[Comparison], str]:
    from cotenant.daemon.verification import verify

    files = given.path, given.companions
    return verify(given.request, placement, given.rules, files, args.llama_server)


def _as_json(shape: ModelShape) -> dict[str, object]:
    sizes = [layer.weight_bytes for layer in shape.layers if not layer.skipped]
    return {
        **attributes(
            shape,
            "name architecture kind quantisation parameters file_bytes tensor_bytes input_bytes output_bytes "
            "tied n_ctx_train n_embd n_vocab n_expert n_expert_used sliding_window chat_template",
        ),
        "layer_bytes": {
            "average": sum(sizes) // len(sizes) if sizes else None,
            "least": min(sizes, default=None),
            "most": max(sizes, default=None),
        },
        "layers": [
            {
                "index": layer.index,
                "bytes": layer.weight_bytes,
                **attributes(layer, "expert_bytes attention n_head k_elements v_elements state_elements"),
                "loaded": not layer.skipped,
            }
            for layer in shape.layers
        ],
    }
