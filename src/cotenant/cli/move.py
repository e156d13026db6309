"""`cotenant move`, and `drain` and `undrain` of `cotenant gpus`: models leave the GPUs that they are on."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from cotenant.cli.client import Daemon, add_daemon_options, model_path
from cotenant.cli.ps import device_label
from cotenant.cli.table import Column, print_result, table_lines
from cotenant.domain.units import format_bytes, format_duration

_DRY_RUN: Final = "show what would happen, and change nothing"


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("name", metavar="NAME", help="the model's name or alias")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--to",
        metavar="GPU[,GPU…]",
        help="GPUs, by index or UUID: on one that fits, else over several",
    )
    what.add_argument("--cancel", action="store_true", help="have it stay where it is, if it moves")
    parser.add_argument("--dry-run", action="store_true", help=_DRY_RUN)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_daemon_options(parser)


def run(args: argparse.Namespace) -> int:
    """Move a model, or show how it would. Raises DaemonSilent, UnknownModel, UnknownDevice or CannotMove."""
    daemon, path = Daemon(args), model_path(args.name, "move")
    if args.cancel:
        found = daemon.send(path, method="DELETE")
        return print_result(args, found, [f"{found['name']} stays where it is"])
    query = f"?to={quote(args.to)}&dry_run={int(args.dry_run)}"
    plan = daemon.send(path + query)
    done = f"{plan['model']} is served from {', '.join(plan['target'])} now"
    return print_result(args, plan, _lines(plan) if args.dry_run else [done])


def register_drains(parser: argparse.ArgumentParser) -> None:
    """Add the actions `drain` and `undrain`; without one, the parser's command is as before."""
    actions = parser.add_subparsers(metavar="ACTION")
    for action, text in (
        ("drain", "place nothing new on a GPU of a daemon; its models move away, or unload when idle"),
        ("undrain", "use a drained GPU again"),
    ):
        added = actions.add_parser(action, help=text)
        added.add_argument("gpu", metavar="GPU", help="its index or UUID")
        if action == "drain":
            added.add_argument("--dry-run", action="store_true", help=_DRY_RUN)
        added.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
        add_daemon_options(added, again=True)
        added.set_defaults(run=_drain, action=action)


def _drain(args: argparse.Namespace) -> int:
    """Drain a GPU, or use it again. Raises DaemonSilent, UnknownDevice or BadRequest."""
    dry_run = args.action == "drain" and args.dry_run
    path = f"/api/devices/{quote(args.gpu, safe='')}/{args.action}?dry_run={int(dry_run)}"
    found = Daemon(args).send(path)
    drained = args.action == "drain"
    lines = drained_lines(f"GPU {args.gpu}", found["models"], drained=drained, dry_run=dry_run)
    return print_result(args, found, lines)


def drained_lines(what: str, plans: Sequence[Any], *, drained: bool, dry_run: bool) -> Iterator[str]:
    """Say that a GPU or a machine is drained, or used again, and what becomes of each model there."""
    if not drained:
        yield f"{what} is used again"
        return
    yield f"{what} {'would be' if dry_run else 'is'} drained: nothing new is placed there"
    for plan in plans:
        stays = "stays: " if plan["method"] == "stay" else ""
        yield f"  {plan['model']} {stays}{plan['text']}{_takes(plan)}"
    if not plans:
        yield "  no model is there"


def _lines(plan: Mapping[str, Any]) -> Iterator[str]:
    yield f"{plan['model']} {plan['text']}{_takes(plan)}"
    columns: Sequence[Column[Any]] = (
        Column("models hold", device_label),
        Column("now", lambda d: format_bytes(d["now_bytes"]), right=True),
        Column("during", lambda d: format_bytes(d["during_bytes"]), right=True),
        Column("after", lambda d: format_bytes(d["after_bytes"]), right=True),
        Column("of", lambda d: format_bytes(d["total_bytes"]), right=True),
    )
    yield from table_lines(columns, plan["devices"])


def _takes(plan: Mapping[str, Any]) -> str:
    seconds = plan["expected_s"]
    return "" if seconds is None else f"; about {format_duration(seconds)}"
