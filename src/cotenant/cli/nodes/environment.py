"""`cotenant nodes env`: what Ray must be started with, for a shell or for systemd."""

import argparse
import shlex
from pathlib import Path
from typing import Final

from cotenant.cli.flags import file_path
from cotenant.ray.environment import TOKEN_PATH, VARIABLES, to_start_with

_TOKEN: Final = Path("/etc/cotenant/ray-token")
_STORAGE: Final = Path("/var/lib/cotenant/ray-gcs")


def register(parser: argparse.ArgumentParser) -> None:
    """Add the action's arguments to its parser."""
    parser.add_argument("--head", action="store_true", help="for the head, of which there is one")
    parser.add_argument("--token", type=file_path, default=_TOKEN, metavar="FILE", help="Ray's token")
    parser.add_argument(
        "--storage", type=file_path, default=_STORAGE, metavar="FOLDER", help="what the head remembers"
    )
    parser.add_argument(
        "--systemd", action="store_true", help="print an EnvironmentFile, in place of lines for a shell"
    )
    parser.set_defaults(run=run, head=False)


def run(args: argparse.Namespace) -> int:
    """Print the variables, each below what happens without it."""
    reasons = {each.name: each.without for each in VARIABLES}
    reasons[TOKEN_PATH] = reasons["RAY_AUTH_MODE"]
    order = [TOKEN_PATH, *reasons]
    values = to_start_with(args.head, args.token, args.storage)
    said = None
    for name in sorted(values, key=order.index):
        if reasons[name] != said:
            said = reasons[name]
            print(f"# Without: {said}.")
        value = values[name] if args.systemd else shlex.quote(values[name])
        print(f"{'' if args.systemd else 'export '}{name}={value}")
    return 0
