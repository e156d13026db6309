"""`cotenant db`: the database of GPU configuration and of past runs."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cotenant.cli.flags import measured
from cotenant.cli.table import Column, print_result, table_lines
from cotenant.domain.units import format_count
from cotenant.store.location import Location, locate

if TYPE_CHECKING:
    from cotenant.store.backup import Relocated


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    upgrade = _action(actions, "upgrade", _upgrade, "bring the tables up to date, as `serve` does at start")
    current = _action(actions, "current", _current, "show which revision of the tables the database has")
    current.add_argument("--json", action="store_true", help="print JSON")
    backup = _action(actions, "backup", _backup, "write GPU configuration and what was learned to a file")
    backup.add_argument("file", metavar="FILE", type=Path, help="a JSON file; compressed if it ends in .gz")
    backup.add_argument("--force", action="store_true", help="replace the file if there is one")
    restore = _action(actions, "restore", _restore, "restore a backup, also on a machine with other GPUs")
    restore.add_argument("file", metavar="FILE", type=Path, help="a file that `cotenant db backup` wrote")
    restore.add_argument(
        "--force", action="store_true", help="replace a GPU configuration, which is backed up first"
    )
    restore.add_argument(
        "--gpus",
        metavar="SPEC",
        default=os.environ.get("COTENANT_GPUS") or None,
        help="describe GPUs in place of this machine's, as for `cotenant gpus`",
    )
    for action in (upgrade, current, backup, restore):
        action.add_argument(
            "--database",
            metavar="URL|PATH",
            default=os.environ.get("COTENANT_DATABASE") or None,
            help="a file, or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE "
            "(default: cotenant.db in the state directory)",
        )


def run(args: argparse.Namespace) -> int:
    """Run the action requested. Raises StoreError, BadSetting, BadDeviceSpec."""
    from cotenant.state_dir import default_database

    location = locate(default_database() if args.database is None else args.database)
    return int(args.action(args, location))


def _action(actions: Any, name: str, action: object, help_: str) -> Any:
    parser = actions.add_parser(name, help=help_)
    parser.set_defaults(action=action)
    return parser


def _upgrade(args: argparse.Namespace, location: Location) -> int:
    from cotenant.store.maintenance import upgrade

    before = upgrade(location)
    if before.revision == before.head:
        print(f"{location} is up to date: revision {before.head}")
    elif before.revision is None:
        print(f"{location} is new: its tables have revision {before.head}")
    else:
        print(f"{location} was upgraded from revision {before.revision} to {before.head}")
    return 0


def _current(args: argparse.Namespace, location: Location) -> int:
    from cotenant.store.maintenance import database_status

    found = database_status(location)
    value = {
        "database": str(location),
        "kind": "sqlite" if location.url is None else "postgresql",
        "revision": found.revision,
        "head": found.head,
        "up_to_date": found.revision == found.head,
    }
    if found.revision is None:
        text = " no tables yet; `cotenant db upgrade` or `cotenant serve` creates them"
    elif found.newer:
        text = f" revision {found.revision}, newer than this Cotenant's {found.head}"
    elif found.revision == found.head:
        text = f" revision {found.revision}, which is up to date"
    else:
        text = f" revision {found.revision}; `cotenant db upgrade` upgrades it to {found.head}"
    return print_result(args, value, [f"{location} has{text}"])


def _backup(args: argparse.Namespace, location: Location) -> int:
    from cotenant.store.maintenance import back_up

    made = back_up(location, args.file, overwrite=args.force)
    services = len(made.configuration.assignments) if made.configuration else 0
    print(
        f"{args.file} holds {format_count(services, 'assignment')}, "
        f"{format_count(len(made.history), 'configuration')} of the history, "
        f"{format_count(len(made.settings), 'setting')}, "
        f"and {format_count(len(made.footprints) + len(made.loads), 'record')} of loads"
    )
    return 0


def _restore(args: argparse.Namespace, location: Location) -> int:
    from cotenant.services.devices import seen_devices
    from cotenant.state_dir import state_dir
    from cotenant.store.maintenance import restore

    replaced = None
    if args.force:
        # What is replaced is kept next to the database, or in the state directory.
        folder = state_dir() if location.path is None else location.path.parent
        replaced = folder / f"cotenant.replaced-{time.time_ns()}.json"
    here = seen_devices(measured(args.gpus), time.time())
    result = restore(location, args.file, here, replaced=replaced)
    if result.number is None:
        print("The backup holds no GPU configuration.")
    else:
        print(*table_lines(_COLUMNS, result.assignments), sep="\n")
        print(f"Saved as GPU configuration {result.number}; `cotenant services apply` puts it into effect.")
    print(f"Restored {result.settings} settings, and {result.learned} records of loads that were not there.")
    if replaced is not None and replaced.exists():
        print(f"The replaced configuration is kept in {replaced}")
    return 0


def _gpu_before(each: Relocated) -> str:
    then = _gpus(each.before.indices)
    return then if each.name is None else f"{then} {each.name}"


def _gpu_now(each: Relocated) -> str:
    from cotenant.store.backup import Outcome

    if each.outcome is Outcome.MISSING:
        return f"not on this machine: left unpinned, was {each.after.device_id}"
    if each.outcome is Outcome.UNKNOWN:
        return "left unpinned: the backup does not say which GPU it was"
    return _gpus(each.after.indices)


def _gpus(indices: Sequence[int]) -> str:
    return f"GPU {', '.join(map(str, indices))}" if indices else "unpinned"


_COLUMNS: Final[Sequence[Column[Relocated]]] = (
    Column("service", lambda each: each.before.service),
    Column("GPU then", _gpu_before),
    Column("GPU now", _gpu_now),
)
