"""The files of a split model, by their names alone: `name-00001-of-00003.gguf`, as gguf-split writes them."""

import re
from pathlib import Path
from typing import Final

_PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.DOTALL)
_MOST_PARTS: Final = 1000
SUFFIX: Final = ".gguf"
"""Of model files; some are in capitals."""


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
