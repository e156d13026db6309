"""The `cotenant` command: runs a subcommand, and reports every error in one line with a hint."""

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Final, NamedTuple, NoReturn

from cotenant import __version__
from cotenant.domain.errors import CotenantError, DoesNotFit, UsageError


class _Command(NamedTuple):
    """A command: its help (None for a former name), and the module and function that add its arguments."""

    help: str | None
    module: str
    register: str = "register"


_COMMANDS: Final = {
    "serve": _Command("serve one model, or all of a configuration", "serve"),
    "analyze": _Command("read a model file: layers, sizes, and the split to use", "analyze"),
    "plan": _Command("plan a model over GPUs without loading it", "plan"),
    "gpus": _Command("show the GPUs, their memory and the processes on them", "gpus"),
    "engine": _Command("list the engines of this machine, or install one", "engine"),
    "models": _Command("list the configured models, and what all of them need", "models"),
    "pull": _Command("fetch a model from the hub into models_dir", "pull"),
    "demo": _Command("serve a model, a generated one if none is given, and ask it a question", "demo"),
    "ps": _Command("show the models of a running daemon and its devices", "ps"),
    "load": _Command("load a model in a running daemon", "control", "register_load"),
    "unload": _Command("unload a model once its requests are answered", "control", "register_unload"),
    "pin": _Command("keep a model from being evicted, or stop doing so", "control", "register_pin"),
    "why": _Command("show what was decided about a model, and why", "control", "register_why"),
    "logs": _Command("show the log of a model's engine", "control", "register_logs"),
    "doctor": _Command("check this machine for problems and suggest fixes", "doctor"),
    "mps": _Command("start, end and show the MPS daemons that share cards", "mps"),
    "top": _Command("watch a running daemon: cards, models, decisions", "top.command"),
    "bench": _Command(
        "measure models alone and together at a running daemon, or at any OpenAI-compatible address", "bench"
    ),
    "simulate": _Command("replay a log of requests on other GPUs or by other rules", "simulate.command"),
    "systemd": _Command("run the daemon under systemd", "systemd.command"),
    "service": _Command(None, "systemd.command", "register_former_name"),
    "services": _Command("pin containers to GPUs, apply that, and roll it back", "services.command"),
    "db": _Command("upgrade, back up and restore the database", "db"),
}
_FAULT, _USAGE, _DOES_NOT_FIT, _INTERRUPTED = 1, 2, 3, 130


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, with a hint."""

    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE, f"{self.prog}: error: {message}\n  hint: {self.prog} --help lists the arguments.\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 for a fault, 2 for wrong usage, 3 for a model that does not fit."""
    given = sys.argv[1:] if argv is None else argv
    try:
        # Other commands' modules are not imported: that is most of the time that a short command takes.
        args = build_parser(given[:1]).parse_args(given)
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except CotenantError as error:
        print(f"cotenant: error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return _status(error)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`, a pager) has exited; Python would fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("COTENANT_DEBUG"):
            raise
        print(f"cotenant: internal error: {type(error).__name__}: {error}", file=sys.stderr)
        print("  hint: this is a bug; COTENANT_DEBUG=1 shows where, please report it.", file=sys.stderr)
        return _FAULT


def build_parser(commands: Collection[str] = _COMMANDS) -> argparse.ArgumentParser:
    """Return the parser of all commands; only `commands` get their arguments."""
    parser = _Parser(
        prog="cotenant",
        description="Many models, few GPUs, no out-of-memory.",
        epilog="Flags of models, devices and the server have a variable each: --n-ctx is COTENANT_N_CTX. "
        "Flags win.",
    )
    parser.add_argument("--version", action="version", version=f"cotenant {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for name, command in _COMMANDS.items():
        # A command that is added without help is not listed.
        has_help = command.help is not None
        added = subparsers.add_parser(name, help=command.help) if has_help else subparsers.add_parser(name)
        if name in commands:
            getattr(import_module(f"cotenant.cli.{command.module}"), command.register)(added)
    return parser


def _status(error: CotenantError) -> int:
    if isinstance(error, UsageError):
        return _USAGE
    return _DOES_NOT_FIT if isinstance(error, DoesNotFit) else _FAULT


if __name__ == "__main__":
    sys.exit(main())
