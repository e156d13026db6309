"""`cotenant logs`: what a model's engine writes."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cotenant.cli.client import Daemon, add_daemon_options, model_path
from cotenant.cli.recipe_options import whole


def register(subparsers: Any) -> None:
    """Add the command to the parser's commands."""
    parser = subparsers.add_parser("logs", help="show the log of a model's engine")
    parser.add_argument("name", metavar="NAME", help="the model's name or alias")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is added, until Ctrl-C")
    parser.add_argument(
        "-n", "--lines", type=whole("--lines", 0), default=100, metavar="N", help="last lines (default: 100)"
    )
    add_daemon_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Copy the log to standard output. Raises DaemonSilent or UnknownModel."""
    path = f"{model_path(args.name, 'logs')}?tail={args.lines}&follow={int(args.follow)}"
    for piece in Daemon(args).stream(path):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    return 0
