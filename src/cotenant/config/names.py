"""The names that models are served under."""

import re
from pathlib import Path
from typing import Final

from cotenant.model_parts import stem

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
