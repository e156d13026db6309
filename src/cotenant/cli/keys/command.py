"""`cotenant keys`: add, list and revoke API keys, which are stored as hashes."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

from cotenant.cli.table import Column, attributes, print_result, table_lines
from cotenant.domain.errors import StoreError
from cotenant.domain.keys import ApiKey, KeyScope, KeyUses
from cotenant.domain.records import day_of
from cotenant.domain.settings import Setting, settings_of
from cotenant.domain.units import format_duration
from cotenant.store.key_file import NAME, KeyFile, new_key


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.epilog = (
        "The keys are in keys.json of the state directory, as hashes; its daemons follow it within 2 s. Once "
        "there is a key, every request needs one."
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a key, and print it: it is shown only now")
    add.add_argument("name", metavar="NAME", help="its name in logs, metrics and the console")
    for each in settings_of(ApiKey):
        shown = each.text.replace("`", "")
        shown = f"30d from now, or {shown}" if each.key == "expires" else shown
        add.add_argument(each.option, dest=each.name, metavar=each.metavar, help=shown)
    add.set_defaults(action=_add)
    listing = actions.add_parser("list", help="list the keys with their rights, and what they have used")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.add_argument(
        "--database",
        metavar="URL|PATH",
        default=os.environ.get("COTENANT_DATABASE") or None,
        help="where their use is counted, as for `cotenant db` (default: cotenant.db in the state directory)",
    )
    listing.set_defaults(action=_list)
    revoke = actions.add_parser("revoke", help="make a key void")
    revoke.add_argument("name", metavar="NAME", help="its name")
    revoke.set_defaults(action=_revoke)


def run(args: argparse.Namespace) -> int:
    """Run the action requested. Raises BadSetting."""
    from cotenant.state_dir import state_dir

    return int(args.action(args, KeyFile(state_dir() / NAME)))


def _add(args: argparse.Namespace, file: KeyFile) -> int:
    from cotenant.config.fields import key_rights

    given = {each.key: getattr(args, each.name) for each in settings_of(ApiKey)}
    text, key = new_key(args.name, key_rights(given, time.time(), lambda each: each.option))
    file.add(key)
    print(text)
    if not any(each.scope.includes(KeyScope.OPERATE) for each in file.read()):
        print(
            "No key of this file may operate: from now on `cotenant ps` and the console need one of the "
            "configuration, or `cotenant keys add NAME --scope operate`.",
            file=sys.stderr,
        )
    return 0


def _list(args: argparse.Namespace, file: KeyFile) -> int:
    names = " ".join(("name", *(each.name for each in settings_of(ApiKey))))
    keys = file.read()
    uses = _uses(args.database) if keys else {}
    rows = [(key, uses.get(key.name, KeyUses())) for key in keys]
    lines = table_lines(_COLUMNS, rows) if keys else [f"There are no keys in {file.path}."]
    told = [
        {**attributes(key, names), "today": asdict(use.day), "total": asdict(use.total)} for key, use in rows
    ]
    return print_result(args, told, lines)


def _uses(database: str | None) -> Mapping[str, KeyUses]:
    """Return what keys have used, as daemons wrote it; nothing, with a warning, if it cannot be read."""
    from cotenant.state_dir import default_database
    from cotenant.store.key_use_reader import read_key_uses

    try:
        return read_key_uses(database or default_database(), day_of(time.time()))
    except StoreError as error:
        print(f"cotenant: warning: what keys have used is not known: {error.message}", file=sys.stderr)
        return {}


def _revoke(args: argparse.Namespace, file: KeyFile) -> int:
    file.revoke(args.name)
    print(f"{args.name} is void")
    return 0


_Row = tuple[ApiKey, KeyUses]


def _cell(setting: Setting) -> Callable[[_Row], str]:
    def cell(row: _Row) -> str:
        value = getattr(row[0], setting.name)
        if setting.key == "expires" and value is not None:
            past = " (expired)" if value <= time.time() else ""
            return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M}Z{past}"
        if value in (None, ()):
            return setting.shown or "-"
        return ", ".join(value) if isinstance(value, tuple) else str(value)

    return cell


_COLUMNS: Final[Sequence[Column[_Row]]] = (
    Column("name", lambda row: row[0].name),
    *(Column(each.key.replace("_", " "), _cell(each)) for each in settings_of(ApiKey)),
    Column("requests today", lambda row: f"{row[1].day.requests:,}", right=True),
    Column("tokens today", lambda row: f"{row[1].day.tokens:,}", right=True),
    Column("requests", lambda row: f"{row[1].total.requests:,}", right=True),
    Column("tokens", lambda row: f"{row[1].total.tokens:,}", right=True),
    Column("waited", lambda row: format_duration(row[1].total.wait_s), right=True),
)
