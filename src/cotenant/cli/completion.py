"""`cotenant completion`: print what makes a shell complete commands, flags and their values."""

import argparse
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple


class _Flag(NamedTuple):
    names: list[str]
    text: str
    values: list[str] | None
    """The values that it may have, none if any, such as a file; None if it takes no value."""


@dataclass(frozen=True, slots=True)
class _Command:
    path: str
    commands: Mapping[str, str]
    flags: list[_Flag]


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("shell", choices=_SCRIPTS, help="the shell that is to complete")
    parser.epilog = (
        "For this shell and later ones: bash: cotenant completion bash > "
        "~/.local/share/bash-completion/completions/cotenant; fish: cotenant completion fish > "
        "~/.config/fish/completions/cotenant.fish; zsh: cotenant completion zsh > _cotenant, in a folder of "
        "$fpath."
    )


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from cotenant.cli.main import build_parser

    print(_SCRIPTS[args.shell](list(_commands(build_parser(), ""))), end="")
    return 0


def _commands(parser: argparse.ArgumentParser, path: str) -> Iterator[_Command]:
    flags, below = [], dict[str, argparse.ArgumentParser]()
    commands: dict[str, str] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            # Former names of commands have no help.
            commands |= {each.dest: each.help or "" for each in action._choices_actions}
            below |= {name: action.choices[name] for name in commands}
        elif action.help is not argparse.SUPPRESS and (action.option_strings or action.choices):
            text = (action.help or "") % {**vars(action), "prog": parser.prog}
            if action.option_strings:
                flags.append(_Flag(list(action.option_strings), text, _values(action)))
            else:
                commands |= {str(choice): text for choice in action.choices or ()}
    yield _Command(path, commands, flags)
    for name, each in below.items():
        yield from _commands(each, f"{path} {name}".lstrip())


def _values(action: argparse.Action) -> list[str] | None:
    if action.nargs == 0:
        return None
    if action.choices:
        return [str(choice) for choice in action.choices]
    return action.metavar.split("|") if isinstance(action.metavar, str) and "|" in action.metavar else []


_FIND: Final = """\
    for word in "${{typed[@]}}"; do
        case "${{command:+$command }}$word" in
            {paths}) command="${{command:+$command }}$word" ;;
        esac
    done
"""
_BASH: Final = """\
# Completes cotenant in bash.
_cotenant() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} command= word
    local -a typed=("${{COMP_WORDS[@]:1:COMP_CWORD-1}}")
    COMPREPLY=()
{find}    case "$command:${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}    esac
    case "$command:$current" in
{words}    esac
}}
complete -o default -F _cotenant cotenant
"""
_ZSH: Final = """\
#compdef cotenant
# Completes cotenant in zsh.
_cotenant() {{
    local current=$words[CURRENT] command= word
    local -a typed=("${{(@)words[2,CURRENT-1]}}") found
{find}    case "$command:$words[CURRENT-1]" in
{values}    esac
    case "$command:$current" in
{words}        *) _files; return ;;
    esac
    _describe cotenant found || _files
}}
if [ "$funcstack[1]" = _cotenant ]; then _cotenant "$@"; else compdef _cotenant cotenant; fi
"""
_FISH: Final = """\
# Completes cotenant in fish.
function __cotenant_at
    set -l command
    for word in (commandline -opc)[2..]
        if contains -- (string join -- ' ' $command $word) {paths}
            set -a command $word
        end
    end
    test "$command" = "$argv[1]"
end
"""


def _posix(
    template: str,
    commands: list[_Command],
    values: Callable[[list[str]], str],
    words: Callable[[Mapping[str, str]], str],
) -> str:
    """Return a script in the grammar that bash and zsh share; the two say what is to be offered."""
    of_flags, of_commands = "", ""
    for each in commands:
        with_value = [(flag.names, flag.values) for flag in each.flags if flag.values is not None]
        for names, choices in with_value:
            pattern = "|".join(shlex.quote(f"{each.path}:{name}") for name in names)
            of_flags += f"        {pattern}) {values(choices)}; return ;;\n"
        flags = {name: flag.text for flag in each.flags for name in flag.names}
        path = shlex.quote(f"{each.path}:")
        of_commands += f"        {path}-*) {words(flags)} ;;\n"
        if each.commands:
            of_commands += f"        {path}*) {words(each.commands)} ;;\n"
    find = _FIND.format(paths="|".join(shlex.quote(each.path) for each in commands if each.path))
    return template.format(find=find, values=of_flags, words=of_commands)


def _bash(commands: list[_Command]) -> str:
    def offer(words: Mapping[str, str] | list[str]) -> str:
        return f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(words))} -- "$current"))' if words else ":"

    return _posix(_BASH, commands, offer, offer)


def _zsh(commands: list[_Command]) -> str:
    def values(words: list[str]) -> str:
        return f"compadd -- {shlex.join(words)}" if words else "_files"

    def offer(words: Mapping[str, str]) -> str:
        described = (f"{word.replace(':', chr(92) + ':')}:{text}" for word, text in words.items())
        return f"found=({shlex.join(described)})"

    return _posix(_ZSH, commands, values, offer)


def _fish(commands: list[_Command]) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = [_FISH.format(paths=" ".join(quoted(each.path) for each in commands if each.path))]
    for each in commands:
        begin = f"complete -c cotenant -n {quoted(f'__cotenant_at {quoted(each.path)}')}"
        for name, text in each.commands.items():
            lines.append(f"{begin} -f -a {quoted(name)} -d {quoted(text)}\n")
        for flag in each.flags:
            names = " ".join(f"-{'l' if name[1] == '-' else 's'} {name.lstrip('-')}" for name in flag.names)
            takes = "" if flag.values is None else " -r"
            takes = f" -x -a {quoted(' '.join(flag.values))}" if flag.values else takes
            lines.append(f"{begin} {names}{takes} -d {quoted(flag.text)}\n")
    return "".join(lines)


_SCRIPTS: Final[Mapping[str, Callable[[list[_Command]], str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
