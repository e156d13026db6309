"""`cotenant keys`: add, list and revoke API keys, which are stored as hashes."""

import argparse
import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from cotenant.cli.table import Column, attributes, print_result, table_lines
from cotenant.domain.errors import BadQuantity, BadSetting, UsageError
from cotenant.domain.keys import ApiKey, KeyScope, check_keys, check_name, key_digest
from cotenant.domain.settings import Setting, settings_of
from cotenant.domain.units import parse_duration
from cotenant.store.key_file import NAME, KeyFile

_PREFIX: Final = "sk-cotenant-"
_RANDOM_BYTES: Final = 32


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
    listing = actions.add_parser("list", help="list the keys with their rights")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(action=_list)
    revoke = actions.add_parser("revoke", help="make a key void")
    revoke.add_argument("name", metavar="NAME", help="its name")
    revoke.set_defaults(action=_revoke)


def run(args: argparse.Namespace) -> int:
    """Run the action requested. Raises BadSetting."""
    from cotenant.daemon.core.settings import state_dir

    return int(args.action(args, KeyFile(state_dir() / NAME)))


def _add(args: argparse.Namespace, file: KeyFile) -> int:
    text = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    given = ((each, getattr(args, each.name)) for each in settings_of(ApiKey))
    values = {each.name: _value(each, value) for each, value in given if value is not None}
    key = ApiKey(check_name(args.name), key_digest(text), **values)

    def add(keys: Sequence[ApiKey]) -> Sequence[ApiKey]:
        check_keys([*keys, key])
        return [*keys, key]

    file.change(add)
    print(text)
    if not any(each.scope.includes(KeyScope.OPERATE) for each in file.read()):
        print(
            "No key of this file may operate: from now on `cotenant ps` and the console need one of the "
            "configuration, or `cotenant keys add NAME --scope operate`.",
            file=sys.stderr,
        )
    return 0


def _value(setting: Setting, text: str) -> Any:
    from cotenant.config.fields import is_list, scalar_of

    if setting.key == "expires":
        with contextlib.suppress(BadQuantity):
            return time.time() + parse_duration(text)
    try:
        read = scalar_of(setting).read
        return tuple(map(read, text.split(","))) if is_list(setting) else read(text)
    except UsageError as error:
        raise BadSetting(f"{setting.option}: {error.message}", hint=error.hint) from None


def _list(args: argparse.Namespace, file: KeyFile) -> int:
    names = " ".join(("name", *(each.name for each in settings_of(ApiKey))))
    keys = file.read()
    lines = table_lines(_COLUMNS, keys) if keys else [f"There are no keys in {file.path}."]
    return print_result(args, [attributes(key, names) for key in keys], lines)


def _revoke(args: argparse.Namespace, file: KeyFile) -> int:
    def revoke(keys: Sequence[ApiKey]) -> Sequence[ApiKey]:
        left = [key for key in keys if key.name != args.name]
        if len(left) == len(keys):
            hint = "See `cotenant keys list`; those of the configuration are revoked there."
            raise BadSetting(f"there is no key {args.name!r} in {file.path}", hint=hint)
        if not left:
            # A daemon on a public address would go on with it, and one on loopback would need no key at all.
            hint = f"Add another one first, or delete {file.path} for a daemon that needs no key."
            raise BadSetting(f"{args.name!r} is the last key", hint=hint)
        return left

    file.change(revoke)
    print(f"{args.name} is void")
    return 0


def _cell(setting: Setting) -> Callable[[ApiKey], str]:
    def cell(key: ApiKey) -> str:
        value = getattr(key, setting.name)
        if setting.key == "expires" and value is not None:
            past = " (expired)" if value <= time.time() else ""
            return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M}Z{past}"
        if value in (None, ()):
            return setting.shown or "-"
        return ", ".join(value) if isinstance(value, tuple) else str(value)

    return cell


_COLUMNS: Final[Sequence[Column[ApiKey]]] = (
    Column("name", lambda key: key.name),
    *(Column(each.key.replace("_", " "), _cell(each)) for each in settings_of(ApiKey)),
)
