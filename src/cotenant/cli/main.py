"""The `cotenant` command: runs a subcommand, and reports every error in one line with a hint."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from cotenant import __version__
from cotenant.domain.errors import CotenantError, DoesNotFit, UsageError

_MODULES = (
    "serve",
    "analyze",
    "plan",
    "gpus",
    "engine",
    "models",
    "pull",
    "demo",
    "ps",
    "control",
    "doctor",
    "mps",
    "top.command",
    "bench",
    "simulate.command",
    "systemd.command",
    "services.command",
    "db",
)
_FAULT, _USAGE, _DOES_NOT_FIT, _INTERRUPTED = 1, 2, 3, 130


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, with a hint."""

    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE, f"{self.prog}: error: {message}\n  hint: {self.prog} --help lists the arguments.\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 for a fault, 2 for wrong usage, 3 for a model that does not fit."""
    try:
        args = build_parser().parse_args(argv)
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


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="cotenant",
        description="Many models, few GPUs, no out-of-memory.",
        epilog="Flags of models, devices and the server have a variable each: --n-ctx is COTENANT_N_CTX. "
        "Flags win.",
    )
    parser.add_argument("--version", action="version", version=f"cotenant {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for name in _MODULES:
        import_module(f"cotenant.cli.{name}").register(subparsers)
    return parser


def _status(error: CotenantError) -> int:
    if isinstance(error, UsageError):
        return _USAGE
    return _DOES_NOT_FIT if isinstance(error, DoesNotFit) else _FAULT


if __name__ == "__main__":
    sys.exit(main())
