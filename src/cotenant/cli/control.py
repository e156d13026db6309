"""Commands about one model of a running daemon: `load`, `unload`, `pin`, `why` and `logs`."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from cotenant.cli.client import Daemon, add_daemon_options, model_path
from cotenant.cli.flags import whole
from cotenant.cli.table import print_result
from cotenant.domain.units import format_bytes


def register(subparsers: Any) -> None:
    """Add the commands to the parser's commands."""
    load = _command(subparsers, "load", _load, "load a model in a running daemon")
    load.add_argument("--no-wait", action="store_true", help="return before it is loaded")
    unload = _command(subparsers, "unload", _unload, "unload a model once its requests are answered")
    unload.add_argument("--no-wait", action="store_true", help="return before its memory is free")
    pin = _command(subparsers, "pin", _pin, "keep a model from being evicted, or stop doing so")
    pin.add_argument("--off", action="store_true", help="let it be evicted again")
    why = _command(subparsers, "why", _why, "show what was decided about a model, and why")
    why.add_argument("--json", action="store_true", help="print the decisions as JSON, with their numbers")
    logs = _command(subparsers, "logs", _logs, "show the log of a model's engine")
    logs.add_argument("-f", "--follow", action="store_true", help="continue to print new lines, until Ctrl-C")
    logs.add_argument(
        "-n", "--lines", type=whole("--lines", 0), default=100, metavar="N", help="last lines (default: 100)"
    )
    for command in (load, unload, pin, why, logs):
        add_daemon_options(command)


def _command(
    subparsers: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=text)
    parser.add_argument("name", metavar="NAME", help="the model's name or alias")
    parser.set_defaults(run=run)
    return parser


def _order(args: argparse.Namespace, action: str) -> Any:
    """Send an order about the model. Raises DaemonSilent, UnknownModel, DoesNotFit or EngineError."""
    query = "?wait=0" if getattr(args, "no_wait", False) else ""
    return Daemon(args).post(model_path(args.name, action) + query)


def _load(args: argparse.Namespace) -> int:
    status = _order(args, "load")
    size = status.get("predicted_bytes")
    print(f"{status['name']} is {status['state']}" + (f", {format_bytes(size)}" if size else ""))
    return 0


def _unload(args: argparse.Namespace) -> int:
    status = _order(args, "unload")
    print(f"{status['name']} is {status['state']}")
    return 0


def _pin(args: argparse.Namespace) -> int:
    status = _order(args, "unpin" if args.off else "pin")
    print(f"{status['name']} is {'pinned' if status['pinned'] else 'not pinned'} ({status['state']})")
    return 0


def _why(args: argparse.Namespace) -> int:
    """Print the decisions about a model, oldest first."""
    daemon, path = Daemon(args), model_path(args.name, "why")
    if args.json:
        return print_result(args, daemon.get(path), ())
    print(daemon.text(path).rstrip("\n") or f"Nothing has been decided about {args.name} yet.")
    return 0


def _logs(args: argparse.Namespace) -> int:
    path = f"{model_path(args.name, 'logs')}?tail={args.lines}&follow={int(args.follow)}"
    for piece in Daemon(args).stream(path):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    return 0
