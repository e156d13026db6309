"""`cotenant mps`: the MPS daemons through which processes share a card; needs no running Cotenant."""

from __future__ import annotations

import argparse
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotenant.cli.flags import add_devices_option, read_inventory, whole
from cotenant.cli.table import print_result
from cotenant.domain.devices import ComputeMode, Device, DeviceKind, Inventory, MpsGroup
from cotenant.domain.errors import MpsFailed
from cotenant.domain.units import parse_duration

if TYPE_CHECKING:
    from cotenant.hardware.mps.discovery import DaemonStatus


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    starting = _action(actions, "start", _start, "start a daemon that runs on its own")
    starting.add_argument(
        "--group",
        choices=[str(group) for group in MpsGroup],
        default=MpsGroup.ALL,
        help="one daemon for all the cards, or one for each (default: %(default)s)",
    )
    stopping = _action(actions, "stop", _stop, "end the daemons, and remove leftovers of dead ones")
    stopping.add_argument("--force", action="store_true", help="end them even if clients use them")
    stopping.add_argument(
        "--within", type=parse_duration, default="10s", metavar="TIME", help="longest wait (default: 10s)"
    )
    _action(actions, "status", _status, "show daemons, their servers, and the clients with their limits")
    logging = _action(actions, "logs", _logs, "show what daemons and servers wrote")
    logging.add_argument(
        "-n", "--lines", type=whole("--lines", 0), default=40, metavar="N", help="last lines (default: 40)"
    )


def _action(actions: Any, name: str, action: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text)
    add_devices_option(parser)
    # Accepted only to be refused: MPS cannot serve described cards.
    parser.add_argument("--gpus", default=os.environ.get("COTENANT_GPUS") or None, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(action=action)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the action. Raises MpsMissing or MpsFailed."""
    if args.gpus is not None:
        raise MpsFailed(
            "MPS shares this machine's cards, not described ones",
            hint="Leave --gpus out, and COTENANT_GPUS unset; --devices names cards.",
        )
    return int(args.action(args))


def _start(args: argparse.Namespace) -> int:
    from cotenant.hardware.mps.daemon import start_manually
    from cotenant.hardware.mps.directories import MpsDirectories
    from cotenant.state_dir import state_dir

    cards = _cards_to_share(read_inventory(args), named=bool(args.devices))
    whole_cards = [card for card in cards if card.kind is not DeviceKind.MIG]
    groups = [[card] for card in whole_cards] if args.group == MpsGroup.CARD else [whole_cards]
    groups += [[card] for card in cards if card.kind is DeviceKind.MIG]
    for group in filter(None, groups):
        uuids = [str(card.id) for card in group]
        found = start_manually(_program(), MpsDirectories.of_cards(state_dir(), uuids), uuids)
        if args.json:
            daemon = {"pid": found.pid, "pipe": str(found.directories.pipe), "cards": uuids}
            print(json.dumps(daemon, ensure_ascii=False))
        else:
            print(f"An MPS daemon, process {found.pid}, serves {', '.join(card.label for card in group)}.")
            print(f"  clients find it by CUDA_MPS_PIPE_DIRECTORY={found.directories.pipe}")
    return 0


def _stop(args: argparse.Namespace) -> int:
    from cotenant.hardware.mps.control import MpsControl
    from cotenant.hardware.mps.daemon import remove_orphans, stop_manually
    from cotenant.hardware.mps.directories import MpsDirectories

    program, ended = _program(), list[dict[str, object]]()
    for status in (each for each in _selected(args) if each.ours):
        directories = MpsDirectories(status.pipe, status.log)
        if not status.running:
            remove_orphans(directories)
        else:
            clients = [client for server in status.servers for client in server.clients]
            if clients and not args.force:
                names = ", ".join(f"{client.model or 'a process'} ({client.pid})" for client in clients[:5])
                raise MpsFailed(
                    f"{len(clients)} clients use the MPS daemon at {status.pipe}: {names}",
                    hint="Unload them first, or give --force to end them too.",
                )
            stop_manually(MpsControl(program, directories), args.within)
        ended.append({"pipe": str(status.pipe), "pid": status.pid})
        if not args.json:
            done = f"Ended process {status.pid}" if status.running else "Removed leftovers"
            print(f"{done} at {status.pipe}.")
    if args.json:
        print(json.dumps({"ended": ended}, ensure_ascii=False))
    elif not ended:
        print("No MPS daemon started by Cotenant is running.")
    return 0


def _status(args: argparse.Namespace) -> int:
    statuses = _selected(args)
    return print_result(args, {"daemons": [asdict(each) for each in statuses]}, _as_text(statuses))


def _logs(args: argparse.Namespace) -> int:
    names = ("control.log", "server.log", "daemon.out")
    logs = [
        {"file": str(status.log / name), "lines": lines}
        for status in _selected(args)
        for name in names
        if (lines := _last_lines(status.log / name, args.lines))
    ]
    text = (line for log in logs for line in (f"==> {log['file']} <==", *log["lines"]))
    return print_result(args, {"logs": logs}, text if logs else ["No MPS daemon has written a readable log."])


def _program() -> Path:
    from cotenant.hardware.mps.program import find_program, no_program

    program = find_program(os.environ)
    if program is None:
        raise no_program(os.environ)
    return program


def _cards_to_share(inventory: Inventory, *, named: bool) -> list[Device]:
    cards = [
        device
        for device in inventory.devices
        if device.kind is not DeviceKind.HOST
        and (named or inventory.reading(device).compute_mode is ComputeMode.EXCLUSIVE_PROCESS)
    ]
    if not inventory.has_gpus:
        raise MpsFailed("there is no GPU to share", hint="`cotenant doctor` may show why.")
    if not cards:
        raise MpsFailed(
            "no card is in Exclusive_Process mode",
            hint="Cards in Default mode are shared without MPS; name some with --devices to use it there.",
        )
    return cards


def _selected(args: argparse.Namespace) -> list[DaemonStatus]:
    from cotenant.hardware.mps.discovery import daemon_statuses
    from cotenant.hardware.mps.program import find_program
    from cotenant.state_dir import state_dir

    statuses = [*daemon_statuses(find_program(os.environ), state_dir(), os.environ)]
    if not args.devices:
        return statuses
    named = [str(device.id) for device in read_inventory(args).devices]
    return [
        each
        for each in statuses
        if each.cards is None or any(uuid.startswith(card) for uuid in named for card in each.cards)
    ]


def _as_text(statuses: Sequence[DaemonStatus]) -> Iterator[str]:
    if not statuses:
        yield "No MPS daemon is running that this user can reach."
    for status in statuses:
        who = (
            f"process {status.pid}" if status.pid else "process unknown" if status.running else "not running"
        )
        yield f"MPS daemon at {status.pipe}: {who}, {'Cotenant’s' if status.ours else 'not Cotenant’s'}"
        yield f"  cards: {'every card' if status.cards is None else ', '.join(status.cards)}"
        if status.problem:
            yield f"  problem: {status.problem}"
        for server in status.servers:
            yield f"  server {server.pid}: {server.state}, {len(server.clients)} clients"
            for client in server.clients:
                yield (
                    f"    {client.pid:<8} {client.model or 'not Cotenant’s':<24} "
                    f"memory {client.memory or 'unlimited'}, "
                    f"SMs {f'{client.threads} %' if client.threads else 'all'}"
                )
        if status.running and not status.servers and not status.problem:
            yield "  no server: it starts with the first client"


def _last_lines(path: Path, count: int) -> list[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            return [line.rstrip("\n") for line in deque(lines, maxlen=count)]
    except OSError:
        return []
