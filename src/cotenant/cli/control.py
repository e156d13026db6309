"""Commands about one model of a running daemon: `load`, `unload`, `pin`, `why`, `logs`; and `reload`."""

import argparse
import sys
from typing import Any, Final

from cotenant.cli.client import Daemon, add_daemon_options, model_path
from cotenant.cli.flags import whole
from cotenant.cli.table import print_result
from cotenant.domain.units import format_bytes


def register(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command that the parser is for."""
    command = parser.prog.split()[-1]
    parser.set_defaults(run=_RUN[command])
    if command == "reload":
        parser.add_argument("--json", action="store_true", help="print JSON")
        add_daemon_options(parser)
        return
    parser.add_argument("name", metavar="NAME", help="the model's name or alias")
    add_daemon_options(parser)
    if command in _SWITCHES:
        switch, text = _SWITCHES[command]
        parser.add_argument(switch, action="store_true", help=text)
    else:
        parser.add_argument(
            "-f", "--follow", action="store_true", help="continue to print new lines, until Ctrl-C"
        )
        parser.add_argument(
            "-n",
            "--lines",
            type=whole("--lines", 0),
            default=100,
            metavar="N",
            help="last lines (default: 100)",
        )


def _order(args: argparse.Namespace, action: str) -> Any:
    """Send an order about the model. Raises DaemonSilent, UnknownModel, DoesNotFit or EngineError."""
    query = "?wait=0" if getattr(args, "no_wait", False) else ""
    return Daemon(args).send(model_path(args.name, action) + query)


def _load(args: argparse.Namespace) -> int:
    status = _order(args, "load")
    size = status.get("predicted_bytes")
    print(f"{status['name']} is {status['state']}" + (f", {format_bytes(size)}" if size else ""))
    return 0


def _unload(args: argparse.Namespace) -> int:
    status = _order(args, "unload")
    stays = " and pinned: its next load stays (`cotenant pin --off` ends that)" if status["pinned"] else ""
    print(f"{status['name']} is {status['state']}{stays}")
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


def _reload(args: argparse.Namespace) -> int:
    """Have the configuration read again, and print what that changes. Raises DaemonSilent or BadSetting."""
    found = Daemon(args).send("/api/reload")
    return print_result(args, found, found["changed"] or ["nothing changed"])


_RUN: Final = {"load": _load, "unload": _unload, "pin": _pin, "why": _why, "logs": _logs, "reload": _reload}
_SWITCHES: Final = {
    "load": ("--no-wait", "return before it is loaded"),
    "unload": ("--no-wait", "return before its memory is free"),
    "pin": ("--off", "let it be evicted again"),
    "why": ("--json", "print the decisions as JSON, with their numbers"),
}
