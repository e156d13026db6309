"""`cotenant why`: the story of the last decisions on a model."""

from __future__ import annotations

import argparse
import json
from typing import Any

from cotenant.cli.client import Daemon, add_daemon_options, model_path


def register(subparsers: Any) -> None:
    """Add the command to the parser's commands."""
    parser = subparsers.add_parser("why", help="tell what was decided about a model, and why")
    parser.add_argument("name", metavar="NAME", help="the model's name or alias")
    parser.add_argument("--json", action="store_true", help="print the decisions as JSON, with their numbers")
    add_daemon_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the story, oldest first. Raises DaemonSilent or UnknownModel."""
    daemon, path = Daemon(args), model_path(args.name, "why")
    if args.json:
        print(json.dumps(daemon.get(path), indent=2, ensure_ascii=False))
    else:
        print(daemon.text(path).rstrip("\n") or f"Nothing has been decided about {args.name} yet.")
    return 0
