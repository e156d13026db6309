"""`cotenant services`: containers that are pinned to GPUs, in a running daemon."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cotenant.cli.client import Daemon, add_daemon_options
from cotenant.cli.services.tables import (
    apply_lines,
    apply_sentence,
    configuration_lines,
    container_lines,
    history_lines,
    preview_lines,
    progress_line,
    recommendation_lines,
    where,
)
from cotenant.cli.table import print_result
from cotenant.domain.errors import BadSetting
from cotenant.services.model import Strategy

_PATH: Final = "/api/system/gpu-config"
_STATUS: Final = f"{_PATH}/status"
_STRATEGIES: Final = f"one of {', '.join(Strategy)}"
_POLL_S: Final = 0.4
_UP: Final = "\x1b[{}F\x1b[J"


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    importing = _add(
        actions,
        "import",
        _import,
        "read compose files and write the `services:` section of the configuration",
    )
    importing.add_argument(
        "files", metavar="COMPOSE", type=Path, nargs="+", help="the compose files, in order"
    )
    importing.add_argument("--write", action="store_true", help="append the section to the configuration")
    importing.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="configuration (default: $COTENANT_CONFIG, ./cotenant.yaml, ~/.config/cotenant/cotenant.yaml)",
    )
    _add(actions, "list", _list, "show services and their GPUs", json=True)
    preview = _add(
        actions, "preview", _preview, "show what a strategy would assign, changing nothing", json=True
    )
    preview.add_argument("--strategy", metavar="NAME", type=_strategy, help=_STRATEGIES)
    _add(
        actions,
        "recommend",
        _recommend,
        "score every strategy for what runs now, and recommend one",
        json=True,
    )
    setting = _add(actions, "set", _set, "save assignments; `apply` recreates the containers")
    setting.add_argument(
        "assignments",
        metavar="SERVICE=GPU[:BUDGET]",
        nargs="*",
        type=_assignment,
        help="a GPU's index, several (0,1), all, a number of GPUs (count=2), or none; a budget in GB. "
        "Services that are not named keep their GPUs, or are placed by the strategy if one is given",
    )
    setting.add_argument("--strategy", metavar="NAME", type=_strategy, help=_STRATEGIES)
    setting.add_argument("--force", action="store_true", help="overwrite generated files that were edited")
    add_daemon_options(setting)
    apply = _add(actions, "apply", _apply, "recreate the services whose assignment changed", wait=True)
    apply.add_argument("--force", action="store_true", help="overwrite generated files that were edited")
    _add(actions, "status", _status, "show the state of the last apply and of the containers", json=True)
    rollback = _add(actions, "rollback", _rollback, "restore what was applied before", wait=True)
    rollback.add_argument("number", metavar="NUMBER", type=_number, nargs="?", help="a number of the history")
    history = _add(actions, "history", _history, "list the configurations saved", json=True)
    history.add_argument("--limit", metavar="N", type=_number, default=20, help="how many (default: 20)")


def _add(
    actions: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    *,
    json: bool = False,
    wait: bool = False,
) -> Any:
    """Add an action; with `json` it asks a daemon, with `wait` it orders one to recreate containers."""
    parser = actions.add_parser(name, help=text)
    parser.set_defaults(run=run)
    if json:
        parser.add_argument("--json", action="store_true", help="print the daemon's answer as JSON")
    if wait:
        parser.add_argument(
            "--wait",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="wait until it ends and show the progress of each service; the exit status is its result",
        )
    if json or wait:
        add_daemon_options(parser)
    return parser


def _import(args: argparse.Namespace) -> int:
    # Only this command needs YAML, which takes long to import.
    from cotenant.cli.services.importing import run

    return run(args)


def _list(args: argparse.Namespace) -> int:
    shown = Daemon(args).get(_PATH)
    return print_result(args, shown, configuration_lines(shown))


def _preview(args: argparse.Namespace) -> int:
    daemon = Daemon(args)
    shown = daemon.get(_PATH)
    preview = daemon.get(f"{_PATH}/preview?strategy={args.strategy or shown['strategy']}")
    return print_result(args, preview, preview_lines(preview, shown))


def _recommend(args: argparse.Namespace) -> int:
    found = Daemon(args).get(f"{_PATH}/recommend")
    return print_result(args, found, recommendation_lines(found))


def _set(args: argparse.Namespace) -> int:
    if not args.assignments and args.strategy is None:
        raise BadSetting(
            "nothing to set", hint="Give SERVICE=GPU, such as ai-llm=0, or --strategy NAME, or both."
        )
    daemon = Daemon(args)
    given = {each["service"]: each for each in args.assignments}
    shown = daemon.get(_PATH)
    kept = {}
    if not args.strategy:
        # An absent GPU is named by its UUID.
        here = {gpu["index"] for gpu in shown["gpus"]}
        for each in shown["assignments"]:
            first, *more = (
                {**gpu, "gpu_index": gpu["gpu_index"] if gpu["gpu_index"] in here else None}
                for gpu in (each, *each["more_gpus"])
            )
            kept[each["service"]] = {**first, "more_gpus": more}
    payload = {
        "strategy": args.strategy or Strategy.MANUAL,
        "assignments": list({**kept, **given}.values()),
        "force": args.force,
    }
    saved = daemon.send(_PATH, payload, "PUT")
    for each in saved["assignments"]:
        budget_gb = each["vram_budget_override"]
        budget = "" if budget_gb is None else f", budget {budget_gb:g} GB"
        place = where(each, shown["gpus"])
        print(f"{each['service']}: {'' if each['gpu_index'] is None else 'GPU '}{place}{budget}")
    for warning in saved["warnings"]:
        print(f"Warning: {warning}")
    print("Saved. `cotenant services apply` recreates the containers.")
    return 0


def _apply(args: argparse.Namespace) -> int:
    return _recreate(args, "apply", {"force": args.force})


def _rollback(args: argparse.Namespace) -> int:
    return _recreate(args, "rollback", {"number": args.number})


def _recreate(args: argparse.Namespace, order: str, payload: Mapping[str, Any]) -> int:
    """Order it, and show the progress until it ends. Returns 0 if it succeeded, else 1."""
    daemon = Daemon(args)
    apply = daemon.send(f"{_PATH}/{order}", payload)
    number = apply["number"]
    if not args.wait:
        print(f"Apply {number} has started; `cotenant services status` shows its progress.")
        return 0
    try:
        shown = _show(apply, [])
        while apply["running"]:
            time.sleep(_POLL_S)
            apply = daemon.get(_STATUS)["apply"]
            if apply is None or apply["number"] != number:
                print(f"Apply {number} was replaced by another one.", file=sys.stderr)
                return 1
            shown = _show(apply, shown)
    except KeyboardInterrupt:
        print("The apply continues; `cotenant services status` shows its progress.", file=sys.stderr)
        raise
    if apply["state"] != "succeeded":
        print("`cotenant services rollback` restores what was applied before.", file=sys.stderr)
        return 1
    if not apply["services"]:
        print("Nothing had to be recreated: every container runs as saved.")
    return 0


def _show(apply: Mapping[str, Any], shown: Sequence[str]) -> Sequence[str]:
    """Print an apply after the lines already shown, and return what is shown now.

    On a terminal all lines are redrawn in place; elsewhere only new ones are printed.
    """
    if sys.stdout.isatty():
        lines = list(apply_lines(apply))
        print((_UP.format(len(shown)) if shown else "") + "\n".join(lines), flush=True)
        return lines
    lines = [progress_line(each) for each in apply["services"]]
    if not apply["running"]:
        lines.append(apply_sentence(apply))
    elif not shown:
        lines.insert(0, apply_sentence(apply))
    new = [line for line in lines if line not in shown]
    if new:
        print(*new, sep="\n", flush=True)
    return [*shown, *new]


def _status(args: argparse.Namespace) -> int:
    status = Daemon(args).get(_STATUS)
    lines = (*apply_lines(status["apply"]), "", *container_lines(status["containers"]))
    return print_result(args, status, lines)


def _history(args: argparse.Namespace) -> int:
    response = Daemon(args).get(f"{_PATH}/history?limit={args.limit}")
    return print_result(args, response, history_lines(response["history"]))


def _assignment(text: str) -> dict[str, Any]:
    """Read `ai-llm=0`, `ollama=0,1`, `ollama=all`, `ollama=count=2`, `ai-enrichment=1:3.5` or `ai-clip=none`.

    Raises BadSetting.
    """
    service, equals, target = text.partition("=")
    gpu, colon, budget = target.lower().partition(":")
    number = _whole(gpu.removeprefix("count=")) if gpu.startswith("count=") else None
    count = "all" if gpu == "all" else number or None
    first, *more = [None] if count or gpu in ("none", "-") else [_whole(each) for each in gpu.split(",")]
    named = first is not None or count or gpu in ("none", "-")
    budget_gb = _gigabytes(budget) if colon else None
    if not service or not equals or not named or None in more or (colon and budget_gb is None):
        raise BadSetting(
            f"{text!r} is not an assignment",
            hint="Write SERVICE=GPU or SERVICE=GPU:BUDGET, such as ai-enrichment=1:3.5. GPU may be several, "
            "as in 0,1, or all, a number of GPUs, as in count=2, or none.",
        )
    return {
        "service": service,
        "gpu_index": first,
        "more_gpus": [{"gpu_index": index} for index in more],
        "gpu_count": count,
        "vram_budget_override": budget_gb,
    }


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _gigabytes(text: str) -> float | None:
    try:
        value = float(text.lower().removesuffix("gb").strip())
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _number(text: str) -> int:
    value = _whole(text)
    if not value:
        raise BadSetting(
            f"{text!r} is not a number of the history", hint="`cotenant services history` lists them."
        )
    return value


def _strategy(text: str) -> str:
    if text not in list(Strategy):
        raise BadSetting(f"{text!r} is not a strategy", hint=f"One of {', '.join(Strategy)}.")
    return text
