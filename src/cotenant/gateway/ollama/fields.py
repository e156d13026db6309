"""Fields of a request in Ollama's API, each read with one clear complaint for what it should not be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cotenant.domain.errors import BadRequest

Fields = Mapping[str, Any]


def text(fields: Fields, name: str, default: str = "") -> str:
    """Read a text. Raises BadRequest."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise _wrong(name, "a text", value)
    return value


def switch(fields: Fields, name: str, default: bool) -> bool:
    """Read true or false. Raises BadRequest."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def items(fields: Fields, name: str) -> Sequence[Any]:
    """Read a list, empty where there is none. Raises BadRequest."""
    value = fields.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _wrong(name, "a list", value)
    return value


def objects(fields: Fields, name: str) -> Sequence[Mapping[str, Any]]:
    """Read a list of objects. Raises BadRequest."""
    found = items(fields, name)
    for value in found:
        if not isinstance(value, dict):
            raise _wrong(name, "a list of objects", value)
    return found


def mapping(fields: Fields, name: str) -> Mapping[str, Any]:
    """Read an object, empty where there is none. Raises BadRequest."""
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(name, "an object", value)
    return value


def _wrong(name: str, expected: str, value: object) -> BadRequest:
    return BadRequest(f"`{name}` is not {expected} but {value!r}"[:160], hint="See docs/ollama.md.")
