"""`cotenant pull`: fetch a model from the hub into the folder that is served."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from urllib.parse import quote

from cotenant.cli.client import Daemon, add_daemon_options
from cotenant.cli.flags import file_path
from cotenant.cli.table import attributes
from cotenant.domain.errors import DaemonSilent, UsageError
from cotenant.domain.hub import PullStep
from cotenant.domain.units import format_bytes


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument(
        "name", metavar="NAME", help="hf.co/ORG/REPO, and :QUANT for one of several; with --node also a model"
    )
    parser.add_argument(
        "--node", metavar="NAME", help="have this machine of the daemon's fetch the files of a served model"
    )
    parser.add_argument(
        "--models-dir",
        type=file_path,
        metavar="FOLDER",
        help="where it goes (default: $COTENANT_MODELS_DIR, else models_dir of the configuration)",
    )
    parser.add_argument("--config", type=file_path, metavar="FILE", help="the configuration (cotenant.yaml)")
    parser.add_argument("--json", action="store_true", help="print each step as a line of JSON")
    add_daemon_options(parser)


def run(args: argparse.Namespace) -> int:
    """Pull the model. A daemon that serves the folder notices by itself."""
    show = _print_json if args.json else StepPrinter()
    if args.node is not None:
        return _pull_there(args, show)
    asyncio.run(pull(args.name, _models_dir(args), show))
    return 0


def _pull_there(args: argparse.Namespace, show: Callable[[PullStep], None]) -> int:
    """Have another machine fetch a model. Raises what a pull raises, DaemonSilent or NodeUnreachable."""
    if args.models_dir is not None:
        raise UsageError(
            "--models-dir is a folder of this machine, and --node names another one",
            hint="There its files go where the model's are here.",
        )
    step: PullStep | None = None
    for line in Daemon(args).lines(f"/api/nodes/{quote(args.node, safe='')}/pull", {"model": args.name}):
        step = PullStep(**{**line, "files": tuple(line["files"])})
        show(step)
    if step is None or not step.files:
        raise DaemonSilent(
            f"the daemon did not say whether {args.node} has the files", hint="Ask again: what came is kept."
        )
    return 0


async def pull(
    name: str, folder: Path, show: Callable[[PullStep], None], list_within_s: float = 15.0
) -> tuple[Path, ...]:
    """Pull into `folder`, pass each step to `show`, and return the files. Raises HubError."""
    from cotenant.hub.puller import HubPuller

    files: tuple[Path, ...] = ()
    async with aclosing(HubPuller(lambda: folder, list_within_s=list_within_s).pull(name)) as steps:
        async for step in steps:
            show(step)
            files = tuple(map(Path, step.files))
    return files


def _models_dir(args: argparse.Namespace) -> Path:
    from cotenant.config.layers import find_configuration
    from cotenant.config.settings import read_configuration

    if args.models_dir is not None:
        folder: Path = args.models_dir
        return folder
    configuration = read_configuration(find_configuration(args.config, os.environ))
    if configuration.models_dir is None:
        raise UsageError(
            "there is no folder to pull models to",
            hint="Give --models-dir FOLDER, or set models_dir in cotenant.yaml.",
        )
    return configuration.models_dir


def _print_json(step: PullStep) -> None:
    rest = attributes(step, "file sha256 total_bytes completed_bytes files")
    print(json.dumps({"status": step.what, **rest}), flush=True)


class StepPrinter:
    """Prints steps as lines; on a terminal the progress of a file is one line that changes."""

    def __init__(self) -> None:
        self._interactive = sys.stdout.isatty()
        self._last: str | None = None

    def __call__(self, step: PullStep) -> None:
        """Print a step."""
        new = step.what != self._last
        if self._interactive and self._last is not None and (new or step.files):
            print()
        if step.files:
            print(*step.files, sep="\n", flush=True)
            return
        self._last = step.what
        if self._interactive:
            print(f"\r\x1b[K{step.what}{_progress(step)}", end="", flush=True)
        elif new:
            size = f" ({format_bytes(step.total_bytes)})" if step.total_bytes else ""
            print(f"{step.what}{size}", flush=True)


def _progress(step: PullStep) -> str:
    if not step.total_bytes:
        return ""
    percent = 100 * step.completed_bytes // step.total_bytes
    return f"  {percent} %  {format_bytes(step.completed_bytes)} of {format_bytes(step.total_bytes)}"
