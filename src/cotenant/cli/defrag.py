"""`cotenant defrag`: the moves of loaded models after which another one fits."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from cotenant.cli.client import Daemon, add_daemon_options
from cotenant.cli.ps import device_index, fragmentation_lines
from cotenant.cli.table import Column, print_result, table_lines
from cotenant.domain.units import format_bytes, format_count


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="the model that is to fit (default: the one that waits longest, else the largest)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="only print the moves, which is the default")
    how.add_argument("--apply", action="store_true", help="make the moves, and return when all are done")
    parser.add_argument("--json", action="store_true", help="print the moves as JSON")
    add_daemon_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the moves, or make them. Raises DaemonSilent, UnknownModel or CannotMove.

    Returns 3 if no moves would do.
    """
    daemon = Daemon(args)
    path = "/api/defragmentation" + (f"?model={quote(args.model, safe='')}" if args.model else "")
    found = daemon.send(path) if args.apply else daemon.get(path)
    print_result(args, found, lines(found, daemon.get("/api/devices"), made=args.apply))
    return 0 if found["fits"] else 3


def lines(found: Mapping[str, Any], memory: Mapping[str, Any], *, made: bool = False) -> Iterator[str]:
    """Render the moves as a table, and what is said of them."""
    count = len(found["moves"])
    yield (
        f"Made {format_count(count, 'move')} for {found['model']}:" if made and count else f"{found['text']}."
    )
    names = {str(device["uuid"]): device_index(device) for device in memory["devices"]}
    columns: Sequence[Column[Mapping[str, Any]]] = (
        Column("model", lambda move: str(move["model"])),
        Column("from GPU", lambda move: ", ".join(names.get(uuid, uuid) for uuid in move["origin"])),
        Column("to GPU", lambda move: names.get(move["to"], "?")),
        Column("bytes", lambda move: format_bytes(move["bytes"]), right=True),
        Column("how", lambda move: "live" if move["live"] else "reload: unloaded first"),
    )
    if found["moves"]:
        yield from table_lines(columns, found["moves"])
    yield from fragmentation_lines(memory.get("fragmentation"))
