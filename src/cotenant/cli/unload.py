"""`cotenant unload`: take a model out of a running daemon's memory."""

from __future__ import annotations

import argparse
from typing import Any

from cotenant.cli.client import Daemon, add_daemon_options, model_path


def register(subparsers: Any) -> None:
    """Add the command to the parser's commands."""
    parser = subparsers.add_parser("unload", help="unload a model once its requests are answered")
    parser.add_argument("name", metavar="NAME", help="the model's name or alias")
    parser.add_argument("--no-wait", action="store_true", help="return before its memory is free")
    add_daemon_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Unload and say how the model stands. Raises DaemonSilent or UnknownModel."""
    status = Daemon(args).post(model_path(args.name, "unload") + ("?wait=0" if args.no_wait else ""))
    print(f"{status['name']} is {status['state']}")
    return 0
