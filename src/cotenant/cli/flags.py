"""Flags with their COTENANT_ variables: those of declared settings, and parts of others."""

import argparse
import os
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any

from cotenant.config.fields import in_units_of_field, in_units_of_file, scalar_of
from cotenant.config.issues import shown
from cotenant.domain.errors import BadRecipe, UsageError
from cotenant.domain.settings import Setting, settings_of


def add_settings(parser: argparse.ArgumentParser, settings: Iterable[Setting]) -> None:
    """Add a flag for each setting that has one, under its group's heading."""
    groups: dict[str, Any] = {}
    for each in settings:
        if each.flag and each.group:
            group = groups.get(each.group) or parser.add_argument_group(each.group)
            add_setting(groups.setdefault(each.group, group), each)


def add_setting(group: Any, setting: Setting) -> None:
    """Add a setting's flag."""
    default = in_units_of_file(setting, setting.default)
    if setting.type is bool:
        switch(group, setting.option, default, setting.help, shown=setting.shown)
        return
    scalar = scalar_of(setting)

    def parse(text: str) -> Any:
        try:
            value = scalar.read(text)
        except UsageError as error:
            what = error.message.removeprefix(f"{setting.option} ")
            if what.startswith(shown(text)):
                what = what.replace(shown(text), repr(text), 1)
            source = f"{variable(setting.option)} sets it too. " if _is_set(setting.option) else ""
            raise type(error)(f"{setting.option} {what}", hint=source + error.hint) from None
        return Path(value) if setting.type is Path else value

    metavar = setting.metavar
    if isinstance(setting.type, type) and issubclass(setting.type, StrEnum):
        metavar = "|".join(setting.type) if len(setting.type) < 5 else "TYPE"
    flag(group, setting.option, parse, default, metavar, setting.help, shown=setting.shown)


def read_settings(args: argparse.Namespace, owner: type) -> dict[str, Any]:
    """Return the values of all flags that `owner` declares, by the names of its fields."""
    return {each.name: in_units_of_field(each, getattr(args, str(each.flag))) for each in settings_of(owner)}


def is_given(args: argparse.Namespace, setting: Setting) -> bool:
    """Whether a setting was set by its flag or its variable."""
    return setting.flag in getattr(args, "given", ()) or _is_set(setting.option)


class _Given(argparse.Action):
    """Stores a value, and that its flag was given: unlike a default, it overrides the file."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = {*getattr(namespace, "given", ()), self.dest}


class _GivenSwitch(argparse.BooleanOptionalAction):
    """Stores a Boolean, and that its flag was given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        super().__call__(parser, namespace, values, option)
        namespace.given = {*getattr(namespace, "given", ()), self.dest}


def flag(
    group: Any,
    name: str,
    parse: Callable[[str], object],
    default: object,
    metavar: str,
    text: str,
    *,
    shown: str = "",
) -> None:
    """Add a flag with a value. Its COTENANT_ variable, if set, is the default; `shown` describes it."""
    given = os.environ.get(variable(name)) or None
    if not shown and isinstance(default, (int, str)) and default != "":
        shown = str(default)
    group.add_argument(
        name,
        action=_Given,
        type=parse,
        default=default if given is None else given,
        metavar=metavar,
        help=f"{text} (default: {shown})" if shown else text,
    )


def switch(group: Any, name: str, default: bool, text: str, *, shown: str = "") -> None:
    """Add a flag and its `--no-` form."""
    shown = shown or ("on" if default else "off")
    given = os.environ.get(variable(name))
    if given is not None:
        default = given.lower() in ("1", "true", "yes", "on")
        if not default and given.lower() not in ("0", "false", "no", "off"):
            raise BadRecipe(f"{variable(name)}={given!r} is neither yes nor no", hint="Use 1 or 0.")
    group.add_argument(name, action=_GivenSwitch, default=default, help=f"{text} (default: {shown})")


def variable(name: str) -> str:
    """Return the environment variable of a flag: `--n-ctx` is COTENANT_N_CTX."""
    return "COTENANT_" + name.removeprefix("--").replace("-", "_").upper()


def _is_set(name: str) -> bool:
    return bool(os.environ.get(variable(name)))


def whole(name: str, least: int, most: int = 1 << 31) -> Callable[[str], int]:
    """Return a parser of whole numbers whose errors name the flag."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise BadRecipe(
                f"{name} {text!r} is not a whole number from {least:,} to {most:,}",
                hint=f"{variable(name)} sets it too." if variable(name) in os.environ else "See --help.",
            )
        return value

    return parse


def file_path(text: str) -> Path:
    """Read a path, `~` expanded."""
    return Path(text).expanduser()
