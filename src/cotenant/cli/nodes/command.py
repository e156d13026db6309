"""`cotenant nodes`: the machines of a daemon's fleet, listed, drained and forgotten."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from cotenant.cli.client import Daemon, add_daemon_options
from cotenant.cli.move import drained_lines
from cotenant.cli.nodes import environment
from cotenant.cli.table import Column, print_result, table_lines
from cotenant.domain.units import format_bytes, format_duration

Node = Mapping[str, Any]
"""A machine as the daemon's API describes it."""

_DRY_RUN: Final = "show what would happen, and change nothing"


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for action, text in (
        ("list", "list the machines: whether they answer, their cards, engines and versions"),
        ("drain", "place nothing new on a machine; its models move away, or unload when idle"),
        ("undrain", "use a drained machine again"),
        ("forget", "miss a lost machine no more; it comes back if it answers again"),
    ):
        added = actions.add_parser(action, help=text)
        if action != "list":
            added.add_argument("name", metavar="NODE", help="its name")
        if action == "drain":
            added.add_argument("--dry-run", action="store_true", help=_DRY_RUN)
        added.add_argument("--json", action="store_true", help="print JSON")
        add_daemon_options(added)
        added.set_defaults(run=_list if action == "list" else _change, action=action)

    environment.register(actions.add_parser("env", help="print what Ray must be started with on a machine"))


def node_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Render machines as a table, with what else is wrong with each below it."""
    nodes: Sequence[Node] = found["nodes"]
    if found["launcher"] is None:
        yield "no other machines: `nodes:` is not configured"
        return
    if found["problem"] is not None:
        yield f"no machine can be reached through {found['launcher'].title()}: {found['problem']}"
    if nodes:
        yield from table_lines(_COLUMNS, nodes)
    elif found["problem"] is None:
        yield "no machine has answered yet"
    for node in nodes:
        for warning in node["warnings"]:
            named = warning.startswith((f"{node['name']} ", "the head "))
            yield warning if named else f"{node['name']}: {warning}"


def _list(args: argparse.Namespace) -> int:
    """List the machines. Raises DaemonSilent."""
    found = Daemon(args).get("/api/nodes")
    return print_result(args, found, node_lines(found))


def _change(args: argparse.Namespace) -> int:
    """Drain a machine, use it again, or forget it. Raises DaemonSilent, UnknownNode or BadRequest."""
    path, daemon = f"/api/nodes/{quote(args.name, safe='')}", Daemon(args)
    if args.action == "forget":
        found = daemon.send(path, method="DELETE")
        return print_result(args, found, [f"{args.name} is missed no more"])
    dry_run = args.action == "drain" and args.dry_run
    found = daemon.send(f"{path}/{args.action}?dry_run={int(dry_run)}")
    lines = drained_lines(args.name, found["models"], drained=args.action == "drain", dry_run=dry_run)
    return print_result(args, found, lines)


def _state(node: Node) -> str:
    silent_s = node["silent_s"]
    silent = node["state"] in ("suspect", "lost") and silent_s is not None
    return f"{node['state']}, silent for {format_duration(silent_s)}" if silent else str(node["state"])


def _span(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(seconds)


_COLUMNS: Final[Sequence[Column[Node]]] = (
    Column("NODE", lambda node: str(node["name"])),
    Column("STATE", _state),
    Column("SINCE", lambda node: _span(node["since_s"]), right=True),
    Column("GPUS", lambda node: str(node["cards"]), right=True),
    Column("FREE", lambda n: "-" if n["free_bytes"] is None else format_bytes(n["free_bytes"]), right=True),
    Column("ENGINES", lambda node: str(node["engines"]), right=True),
    Column("LEASE LEFT", lambda node: _span(node["lease_left_s"]), right=True),
    Column("LINK", lambda node: _span(node["link_s"]), right=True),
    Column("VERSION", lambda node: node["version"] or "-"),
    Column("BY", lambda node: str(node["launcher"])),
    Column("ADDRESS", lambda node: node["address"] or "-"),
)
