"""A YAML text with the line of every value, so that issues can name the line."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from cotenant.config.issues import ConfigIssue, KeyPath, refusal
from cotenant.domain.errors import BadSetting

_MAX_BYTES: Final = 1 << 20
_MAX_VALUES: Final = 50_000
_MAX_DEPTH: Final = 16
_MERGE: Final = "<<"
_ABSENT: Final = frozenset(["", "~", "null", "Null", "NULL"])
EXAMPLE: Final = "docs/configuration.md shows a whole file."


class Unquoted(str):
    """A scalar that was written without quotes: where any value is allowed, it may mean a number."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Document:
    """The settings of a file: mappings, lists and strings, None for an empty value.

    Scalars stay strings, as in the environment: YAML would read `flash_attn: on` as true and a keep-alive of
    `1:30` as 90. `lines` are the lines of keys and of list items, counted from 1.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def line_of(self, key: KeyPath) -> int | None:
        """Return the line of a key, or of its closest parent; None if its section is not in the file."""
        if not key or key[0] not in self.settings:
            return None
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key)


def read_document(path: Path) -> Document:
    """Read a file. Raises BadSetting."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        return parse_document(content.decode("utf-8"), str(path))
    except UnicodeDecodeError:
        raise _refused(str(path), "it is not a UTF-8 text") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise _refused(str(path), f"it cannot be read: {why}", "Check the path given by --config.") from None


def parse_document(text: str, name: str) -> Document:
    """Read YAML as the text of the file `name`. Raises BadSetting."""
    if len(text) > _MAX_BYTES:
        raise _refused(name, "it is over 1 MiB, too large for a configuration")
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise _refused(name, f"it is not YAML: {_one_line(error.problem)}", line=line) from None
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise _refused(name, f"it is not YAML: {_one_line(error)}") from None
    return _Reader(name).read(root)


def _refused(name: str, what: str, hint: str = EXAMPLE, line: int | None = None) -> BadSetting:
    return refusal([ConfigIssue(name, what, hint, line=line)])


class _Reader:
    """Converts YAML nodes to values, and records their lines and issues."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: dict[KeyPath, int] = {}
        self._issues: list[ConfigIssue] = []
        self._values = 0

    def read(self, root: yaml.Node | None) -> Document:
        settings = self._value(root, ()) if root is not None else None
        if settings is not None and not isinstance(settings, dict):
            self._report(root, (), "it is not a mapping of settings", EXAMPLE)
        if self._issues:
            raise refusal(self._issues)
        # As in compose files: a place for anchors.
        own = {key: each for key, each in (settings or {}).items() if not key.startswith("x-")}
        return Document(self._name, own, self._lines)

    def _value(self, node: yaml.Node, key: KeyPath) -> Any:
        self._count(node, key)
        if isinstance(node, yaml.MappingNode):
            return dict(self._pairs(node, key))
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self._lines[*key, number] = _line(item)
            return [self._value(item, (*key, number)) for number, item in enumerate(node.value)]
        text: str = node.value
        plain = isinstance(node, yaml.ScalarNode) and not node.style
        if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text):
            self._report(node, key, "it has a character that is not allowed", "Retype the value.")
        if plain:
            return None if text in _ABSENT else Unquoted(text)
        return text

    def _count(self, node: yaml.Node, key: KeyPath) -> None:
        self._values += 1
        # With aliases, a small text can expand to a huge one.
        if self._values > _MAX_VALUES or len(key) > _MAX_DEPTH:
            self._report(node, key, "it is nested too deep, or too long", EXAMPLE)
            raise refusal(self._issues)

    def _pairs(self, node: yaml.MappingNode, key: KeyPath) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for name_node, value_node in node.value:
            name = name_node.value
            if _is_merge(name_node):
                continue
            if not isinstance(name, str):
                self._report(name_node, key, "a key is not a word", EXAMPLE)
                continue
            if name in seen:
                self._report(
                    name_node, (*key, name), f"it is given twice, first on line {seen[name]}", "Keep one."
                )
                continue
            seen[name] = self._lines[*key, name] = _line(name_node)
            yield name, self._value(value_node, (*key, name))
        for name_node, value_node in self._merged(node, key):
            if name_node.value not in seen:
                name = name_node.value
                seen[name] = self._lines[*key, name] = _line(name_node)
                yield name, self._value(value_node, (*key, name))

    def _merged(self, node: yaml.MappingNode, key: KeyPath) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """Yield what `<<` adds to a mapping, what wins first: as YAML 1.1 has it."""
        self._count(node, key)
        for _, value in filter(lambda pair: _is_merge(pair[0]), node.value):
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    self._report(
                        source, (*key, _MERGE), "it is not a mapping", "Write <<: *anchor of a mapping."
                    )
                    continue
                yield from (
                    pair for pair in source.value if isinstance(pair[0].value, str) and not _is_merge(pair[0])
                )
                yield from self._merged(source, (*key, _MERGE))

    def _report(self, node: yaml.Node | None, key: KeyPath, what: str, hint: str) -> None:
        line = None if node is None else _line(node)
        self._issues.append(ConfigIssue(self._name, what, hint, key=key, line=line))


def _is_merge(key: yaml.Node) -> bool:
    return isinstance(key, yaml.ScalarNode) and key.value == _MERGE and not key.style


def _line(node: yaml.Node) -> int:
    line: int = node.start_mark.line
    return line + 1


def _one_line(error: object) -> str:
    return " ".join(str(error or "it does not parse").split())[:200]
