"""Writes `docs/cli.md`, the reference of all commands, from their parsers.

Run `python -m cotenant.cli.reference > docs/cli.md`.
It formats the flags itself: argparse's own help differs from one version of Python to the next.
"""

import argparse
from collections.abc import Iterator
from typing import Final

from cotenant.cli.main import build_parser

_HEAD: Final = """\
# Command reference

<!-- Written by `python -m cotenant.cli.reference > docs/cli.md`. -->
"""
_PYTHON_ADDS: Final = " (default: %(default)s)"
"""What Python before 3.13 appends to the help of a flag that has a `--no-` form."""


def reference() -> str:
    """Return the page as Markdown."""
    parser = build_parser()
    commands = _subcommands(parser)
    table = [
        f"| [`{command.prog}`](#{command.prog.replace(' ', '-')}) | {text} |" for command, text in commands
    ]
    parts = [_HEAD, "| command | |\n|---|---|\n" + "\n".join(table) + "\n", f"{parser.epilog}\n"]
    for command, text in commands:
        parts += _command(command, text, level=2)
    return "\n".join(parts)


def _command(parser: argparse.ArgumentParser, text: str, level: int) -> Iterator[str]:
    yield f"{'#' * level} {parser.prog}\n"
    yield f"{text[:1].upper()}{text[1:]}.{f' {parser.epilog}' if parser.epilog else ''}\n"
    positionals, options, *groups = parser._action_groups
    for title, actions in (
        ("", positionals._group_actions + options._group_actions),
        *((f"{str(group.title).capitalize()}:\n\n", group._group_actions) for group in groups),
    ):
        # Commands follow on their own.
        hidden = (argparse._HelpAction, argparse._SubParsersAction)
        shown = [each for each in actions if each.help != argparse.SUPPRESS and not isinstance(each, hidden)]
        flags = [_flag(action) for action in shown]
        if flags:
            yield title + "\n".join(flags) + "\n"
    for command, help_ in _subcommands(parser):
        yield from _command(command, help_, level + 1)


def _subcommands(parser: argparse.ArgumentParser) -> list[tuple[argparse.ArgumentParser, str]]:
    """Return a parser's commands with what they do; old names of commands have no help and are left out."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [(action.choices[each.dest], each.help or "") for each in action._choices_actions]
    return found


def _flag(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else _value(action)
    names = [f"`{name}{f' {value}' if value else ''}`" for name in action.option_strings] or [f"`{value}`"]
    text = action.help or ""
    if isinstance(action, argparse.BooleanOptionalAction):
        text = text.removesuffix(_PYTHON_ADDS)
    text %= {"default": action.default}
    return f"- {', '.join(names)}{f': {text}' if text else ''}"


def _value(action: argparse.Action) -> str:
    choices = "|".join(map(str, action.choices)) if action.choices else action.dest.upper()
    name = str(action.metavar or choices)
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} [{name} ...]"}.get(str(action.nargs), name)


if __name__ == "__main__":
    print(reference(), end="")
