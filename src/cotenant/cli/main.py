"""The `cotenant` command: runs a subcommand, and reports every error in one line with a hint."""

import argparse
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Final, NoReturn

from cotenant import __version__
from cotenant.domain.errors import CotenantError, DoesNotFit, UsageError
from cotenant.domain.units import printable

_COMMANDS: Final[Mapping[str, tuple[str, str | None]]] = {
    "serve": ("serve", "serve one model, or all of a configuration"),
    "analyze": ("analyze", "read a model file: layers, sizes, and the split to use"),
    "plan": ("plan", "plan a model over GPUs without loading it"),
    "gpus": ("gpus", "show the GPUs, their memory and the processes on them, or drain one"),
    "nodes": ("nodes.command", "list the machines of a daemon, drain one, or forget it"),
    "engine": ("engine", "list the engines of this machine, or install one"),
    "models": ("models", "list the configured models, and what all of them need"),
    "pull": ("pull", "fetch a model from the hub into models_dir"),
    "demo": ("demo", "serve a model, a generated one if none is given, and ask it a question"),
    "ps": ("ps", "show the models of a running daemon and its devices"),
    "load": ("control", "load a model in a running daemon"),
    "unload": ("control", "unload a model once its requests are answered"),
    "pin": ("control", "keep a model from being evicted, or stop doing so"),
    "move": ("move", "move a loaded model to other GPUs, without ending a request"),
    "defrag": ("defrag", "show or make the moves of loaded models after which another one fits"),
    "lease": ("lease", "run a command in GPU memory that a daemon holds for it"),
    "why": ("control", "show what was decided about a model, and why"),
    "logs": ("control", "show the log of a model's engine"),
    "reload": ("control", "read the configuration again in a running daemon, and say what changes"),
    "doctor": ("doctor", "check this machine for problems and suggest fixes"),
    "mps": ("mps", "start, end and show the MPS daemons that share cards"),
    "top": ("top.command", "watch a running daemon: cards, models, decisions"),
    "bench": (
        "bench",
        "measure models alone and together at a running daemon, or at any OpenAI-compatible address",
    ),
    "simulate": ("simulate.command", "replay a log of requests on other GPUs or by other rules"),
    "advise": ("simulate.advise", "replay a log of requests with other settings, and say what to change"),
    "systemd": ("systemd.command", "run the daemon under systemd"),
    "service": ("systemd.command", None),
    "services": ("services.command", "pin containers to GPUs, apply that, and roll it back"),
    "keys": ("keys.command", "add, list and revoke API keys"),
    "db": ("db", "upgrade, back up and restore the database"),
    "agent": ("nodes.agent", None),
    "completion": ("completion", "print what makes a shell complete commands and flags"),
}
"""The module of each command, and its help; a former name, and what no person starts, have none."""
_FAULT, _USAGE, _DOES_NOT_FIT, _INTERRUPTED = 1, 2, 3, 130


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, with a hint."""

    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE, f"{self.prog}: error: {message}\n  hint: {self.prog} --help lists the arguments.\n")


def _plain(text: str) -> str:
    """Return lines that may hold names of others, without what commands a terminal."""
    return "\n".join(map(printable, text.split("\n")))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 for a fault, 2 for wrong usage, 3 for a model that does not fit."""
    given = sys.argv[1:] if argv is None else argv
    args = argparse.Namespace()
    try:
        # Other commands' modules are not imported: that is most of the time that a short command takes.
        build_parser(given[:1]).parse_args(given, args)
        if given[0] == "service":
            print("cotenant: warning: `cotenant service` is now `cotenant systemd`.", file=sys.stderr)
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except CotenantError as error:
        _report(args, f"error: {error.message}", error.hint)
        if isinstance(error, UsageError):
            return _USAGE
        return _DOES_NOT_FIT if isinstance(error, DoesNotFit) else _FAULT
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`, a pager) has exited; Python would fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("COTENANT_DEBUG"):
            raise
        hint = "this is a bug; COTENANT_DEBUG=1 shows where, please report it."
        _report(args, f"internal error: {type(error).__name__}: {error}", hint)
        return _FAULT


def _report(args: argparse.Namespace, what: str, hint: str) -> None:
    """Print an error with its hint, or log it if the log is one JSON object a line."""
    if getattr(args, "log_format", "text") == "json":
        import logging

        logging.getLogger("cotenant").critical("%s", what, extra={"hint": hint})
        return
    print(f"cotenant: {_plain(what)}", file=sys.stderr)
    if hint:
        print(f"  hint: {_plain(hint)}", file=sys.stderr)


def build_parser(commands: Collection[str] = _COMMANDS) -> argparse.ArgumentParser:
    """Return the parser of `commands` with their arguments; of all, without arguments, if one is unknown."""
    parser = _Parser(
        prog="cotenant",
        description="Many models, few GPUs, no out-of-memory.",
        epilog="Flags of models, devices and the server have a variable each: --n-ctx is COTENANT_N_CTX. "
        "Flags win.",
    )
    parser.add_argument("--version", action="version", version=f"cotenant {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    known = all(name in _COMMANDS for name in commands) and bool(commands)
    for name, (module, help_) in _COMMANDS.items():
        if known and name not in commands:
            # The parser of a command takes a third of a millisecond even without its arguments.
            continue
        # A command that is added without help is not listed.
        added = subparsers.add_parser(name) if help_ is None else subparsers.add_parser(name, help=help_)
        if name in commands:
            command = import_module(f"cotenant.cli.{module}")
            # The actions of a command, and commands that share a module, each set their own.
            added.set_defaults(run=getattr(command, "run", None))
            command.register(added)
    return parser


if __name__ == "__main__":
    sys.exit(main())
