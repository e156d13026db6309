"""`cotenant load`: load a model into a running daemon's devices."""

from __future__ import annotations

import argparse
from typing import Any

from cotenant.cli.client import Daemon, add_daemon_options, model_path
from cotenant.domain.units import format_bytes


def register(subparsers: Any) -> None:
    """Add the command to the parser's commands."""
    parser = subparsers.add_parser("load", help="load a model in a running daemon")
    parser.add_argument("name", metavar="NAME", help="the model's name or alias")
    parser.add_argument("--no-wait", action="store_true", help="return before it is loaded")
    add_daemon_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load and say where it sits. Raises DaemonSilent, UnknownModel, DoesNotFit or EngineError."""
    status = Daemon(args).post(model_path(args.name, "load") + ("?wait=0" if args.no_wait else ""))
    size = status.get("predicted_bytes")
    print(f"{status['name']} is {status['state']}" + (f", {format_bytes(size)}" if size else ""))
    return 0
