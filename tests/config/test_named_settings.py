"""Messages name only settings that exist."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import cotenant
from cotenant.config.schema import Settings
from cotenant.config.sections import Section, sections_in

SOURCE = Path(cotenant.__file__).parent
NAMED = re.compile(r"`([a-z_]+(?:\.[a-z_]+)*)(?::[^`]*)?`")
"""A setting in backquotes, `section.key` or `key: value`."""


def keys_of(section: type[Section]) -> Mapping[str, list[type[Section]]]:
    return {
        key: [*sections_in(section.model_fields[name].annotation)]
        for key, name in section.fields_by_key().items()
    }


def exists(path: str, sections: list[type[Section]]) -> bool:
    first, _, rest = path.partition(".")
    return any(first in keys and (not rest or exists(rest, keys[first])) for keys in map(keys_of, sections))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of a file that users may read: no docstring, the parts of an f-string together."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            inner |= {id(part) for part in node.values}
            yield node.lineno, "".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.lineno, node.value


@pytest.mark.parametrize("folder", sorted(each.name for each in SOURCE.iterdir() if each.is_dir()))
def test_every_setting_that_a_message_names_exists(folder: str) -> None:
    sections = keys_of(Settings).keys()
    wrong = []
    for path in (SOURCE / folder).rglob("*.py"):
        for line, text in texts(path):
            for found in NAMED.finditer(text):
                name = found[1]
                is_setting = name.partition(".")[0] in sections and "." in name
                if is_setting and not exists(name, [Settings]):
                    wrong.append(f"{path.relative_to(SOURCE)}:{line}: {found[0]}")
    assert not wrong


def test_a_setting_that_does_not_exist_is_recognized() -> None:
    assert exists("warm.ram_mib", [Settings])
    assert not exists("warm.ram", [Settings])
    assert exists("services.compose.command", [Settings])
