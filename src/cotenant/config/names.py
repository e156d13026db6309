"""The names of model files: what they are served under, and the parts of a split one."""

import re
from pathlib import Path
from typing import Final

_PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.DOTALL)
_MOST_PARTS: Final = 1000
SUFFIX: Final = ".gguf"
"""Of model files; some are in capitals."""
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
_OTHERS: Final = re.compile(r"[^A-Za-z0-9._@+-]+")


def clean_name(path: Path) -> str:
    """Return the model name for a file: without suffix and part number, special characters as dashes."""
    text = _OTHERS.sub("-", stem(path)).strip("-._@+")[:100].rstrip("-._@+")
    return text or "model"


def free_name(wanted: str, taken: set[str]) -> str:
    """Return the name, or the first of `name-2`, `name-3`, … that is not taken."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


def part_paths(path: Path) -> tuple[Path, ...]:
    """Return all parts of a split model, given its first part; for other files just the file."""
    match = _PART.fullmatch(_bare(path))
    if match is None or int(match["number"]) != 1 or not 1 < int(match["count"]) <= _MOST_PARTS:
        return (path,)
    count = int(match["count"])
    return tuple(path.with_name(f"{match['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1))


def first_part(path: Path) -> Path:
    """Return the first part of the split model that a file belongs to; for other files the file."""
    match = _PART.fullmatch(_bare(path))
    return path.with_name(f"{match['stem']}-00001-of-{match['count']}.gguf") if match else path


def _bare(path: Path) -> str:
    return path.name[: -len(SUFFIX)] if path.name.lower().endswith(SUFFIX) else path.name


def stem(path: Path) -> str:
    """Return a model file's name without its suffix and its part number."""
    name = _bare(path)
    match = _PART.fullmatch(name)
    return match["stem"] if match else name
