"""Bounds on grammars and schemas, whose parsers in engines recurse: one nested deeply enough crashes them."""

from collections.abc import Mapping
from typing import Any, Final

from cotenant.domain.errors import BadRequest

_FIELDS: Final = frozenset(
    {
        "format",
        "functions",
        "grammar",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "json_schema",
        "output_config",
        "output_format",
        "regex",
        "response_format",
        "structural_tag",
        "structured_outputs",
        "text",
        "tools",
    }
)
_MAX_DEPTH: Final = 200
_MAX_VALUES: Final = 100_000
_MAX_KEYS: Final = 1000
_MAX_CHOICES: Final = 5000
"""Of one object and one list: llama.cpp takes minutes for a schema with some times as many."""
_STEPS: Final = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


def check_grammar(request: Mapping[str, Any]) -> None:
    """Check the grammars and schemas of a request, and the patterns in them. Raises BadRequest."""
    for name in request.keys() & _FIELDS:
        level, values = [request[name]], 0
        for _ in range(_MAX_DEPTH):
            below: list[Any] = []
            for value in level:
                if isinstance(value, dict | list):
                    most = _MAX_KEYS if isinstance(value, dict) else _MAX_CHOICES
                    if len(value) > most:
                        raise BadRequest(f"`{name}` has over {most:,} values in one object or list")
                    below += value.values() if isinstance(value, dict) else value
                elif isinstance(value, str) and _depth(value) > _MAX_DEPTH:
                    raise BadRequest(f"`{name}` has over {_MAX_DEPTH} brackets within each other")
            level, values = below, values + len(below)
            if values > _MAX_VALUES:
                raise BadRequest(f"`{name}` has over {_MAX_VALUES:,} values")
        if level:
            raise BadRequest(f"`{name}` is nested over {_MAX_DEPTH} deep")


def _depth(text: str) -> int:
    """Return how many brackets are open at most."""
    if max(map(text.count, "([{")) <= _MAX_DEPTH:
        return 0
    depth = deepest = 0
    for character in text:
        depth = max(0, depth + _STEPS.get(character, 0))
        deepest = max(deepest, depth)
    return deepest
