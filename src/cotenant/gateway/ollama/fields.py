"""Reads fields of a request in Ollama's API. Values of the wrong type raise BadRequest."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from cotenant.domain.errors import BadRequest

Fields = Mapping[str, Any]
T = TypeVar("T")


def text(fields: Fields, name: str, default: str = "") -> str:
    """Read a text."""
    return _read(fields, name, str, "a text", default)


def switch(fields: Fields, name: str, default: bool) -> bool:
    """Read true or false."""
    return _read(fields, name, bool, "true or false", default)


def items(fields: Fields, name: str) -> Sequence[Any]:
    """Read a list, empty by default."""
    return _read(fields, name, list, "a list", [])


def objects(fields: Fields, name: str) -> Sequence[Mapping[str, Any]]:
    """Read a list of objects, empty by default."""
    found = items(fields, name)
    for value in found:
        if not isinstance(value, dict):
            raise _wrong(name, "a list of objects", value)
    return found


def mapping(fields: Fields, name: str) -> Mapping[str, Any]:
    """Read an object, empty by default."""
    return _read(fields, name, dict, "an object", {})


def _read(fields: Fields, name: str, kind: type[T], expected: str, default: T) -> T:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise _wrong(name, expected, value)
    return value


def _wrong(name: str, expected: str, value: object) -> BadRequest:
    return BadRequest(f"`{name}` is not {expected} but {value!r}"[:160], hint="See docs/ollama.md.")
