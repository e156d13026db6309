"""Parses one compose file as YAML, with its two tags and the lines of its services."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from cotenant.domain.errors import ComposeFileError

_MAX_BYTES: Final = 1 << 20
_MAX_NODES: Final = 30_000
MAX_VALUES: Final = 100_000
_HINT: Final = "Check services.compose.files, or run the compose command's `config` on it."


class Reset:
    """The value of a key tagged `!reset`: the value of earlier files is dropped."""


@dataclass(frozen=True, slots=True)
class Override:
    """The value of a key tagged `!override`: it replaces the value of earlier files."""

    value: Any


@dataclass(frozen=True, slots=True)
class ComposeText:
    """A compose file: its top level, and the line on which each service begins."""

    path: Path
    root: Mapping[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """YAML as compose commands read it. Other tags are ignored.

    PyYAML takes some 20 µs for each value: one that is written too often ends the reading.
    """

    _nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"it has over {_MAX_NODES:,} values", problem_mark=mark)
        return super().compose_node(parent, index)


def _tagged(loader: _Loader, tag: str, node: yaml.Node) -> Any:
    if tag == "reset":
        return Reset()
    value: Any = None
    if isinstance(node, yaml.MappingNode):
        value = loader.construct_mapping(node, deep=True)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    elif isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    return Override(value) if tag == "override" else value


_Loader.add_multi_constructor("!", _tagged)


def read_compose_text(path: Path) -> ComposeText:
    """Read a file. Raises ComposeFileError, which names the file and, where there is one, the line."""

    def error_at(line: int | None, what: str) -> ComposeFileError:
        where = path if line is None else f"{path}:{line}"
        return ComposeFileError(f"{where}: {what}", hint=_HINT)

    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise error_at(None, f"the compose file cannot be read: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise error_at(None, "it is over 1 MiB, too large for a compose file")
    try:
        text = content.decode("utf-8")
        loader = _Loader(text)
        node = loader.get_single_node()
        root = None if node is None else loader.construct_document(node)
    except UnicodeDecodeError:
        raise error_at(None, "it is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise error_at(line, f"it is not YAML: {error.problem or error.context}") from None
    except Exception as error:  # its constructors raise anything for a value of the wrong type
        raise error_at(None, f"it is not YAML: {' '.join(str(error).split())[:200]}") from None
    if root is None:
        root = {}
    if not isinstance(root, dict):
        raise error_at(1, "it is not a compose file: the top level is not a mapping")
    if count_values(root) > MAX_VALUES:
        raise error_at(None, "its aliases make it too long for a compose file")
    return ComposeText(path, root, _service_lines(node))


def shape_error(text: ComposeText, service: str | None, what: str) -> ComposeFileError:
    """Return the error that something in a file, or in one of its services, is not valid for compose."""
    line = text.lines.get(service or "", 1)
    about = f"service {service}: " if service else ""
    return ComposeFileError(f"{text.path}:{line}: {about}{what}", hint=_HINT)


def count_values(root: Any) -> int:
    """Return how many values a value has when its aliases, which may be recursive, are expanded.

    It stops above the most that compose files may have.
    """
    waiting, count = [root], 0
    while waiting and count <= MAX_VALUES:
        value = waiting.pop()
        count += 1
        value = value.value if isinstance(value, Override) else value
        waiting.extend(
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        )
    return count


def _service_lines(root: yaml.Node | None) -> dict[str, int]:
    sections = root.value if isinstance(root, yaml.MappingNode) else ()
    services = next((value for key, value in sections if key.value == "services"), None)
    if not isinstance(services, yaml.MappingNode):
        return {}
    return {str(key.value): key.start_mark.line + 1 for key, _ in services.value}
