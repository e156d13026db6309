"""`cotenant pin`: keep a model loaded whatever happens, or stop doing so."""

from __future__ import annotations

import argparse
from typing import Any

from cotenant.cli.client import Daemon, add_daemon_options, model_path


def register(subparsers: Any) -> None:
    """Add the command to the parser's commands."""
    parser = subparsers.add_parser("pin", help="keep a model from being evicted, or stop doing so")
    parser.add_argument("name", metavar="NAME", help="the model's name or alias")
    parser.add_argument("--off", action="store_true", help="let it be evicted again")
    add_daemon_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Pin or unpin. Raises DaemonSilent or UnknownModel."""
    status = Daemon(args).post(model_path(args.name, "unpin" if args.off else "pin"))
    print(f"{status['name']} is {'pinned' if status['pinned'] else 'not pinned'} ({status['state']})")
    return 0
