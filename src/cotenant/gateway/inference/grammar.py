"""Bounds on what crashes an engine or holds up its queue: deep grammars, wide objects, long lists."""

from collections.abc import Mapping
from itertools import chain
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
"""Of one object, and of one list or text: llama.cpp takes minutes for a schema with some times as many."""
_MAX_PAIRS: Final = 10_000
"""Of one object anywhere: llama.cpp takes 0.3 s for as many, and half a minute for ten times as many."""
_MAX_BREAKERS: Final = 256
"""llama.cpp compares each with its whole vocabulary: 5000 take 20 s with a vocabulary of 500 tokens."""
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    **dict.fromkeys(("functions", "messages", "tools"), (list,)),
    "logit_bias": (dict, list),
    "stop": (str, list),
    "stream_options": (dict,),
}
"""Of fields that engines answer with 500, as for a fault of theirs, or ignore if the type is wrong."""
_FAULTS: Final = ("Failed to parse messages", "Failed to parse tools")
_WORDS: Final[Mapping[type, str]] = {list: "a list", dict: "an object", str: "a string"}
_STEPS: Final = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


def check_bounds(request: Mapping[str, Any], body: bytes) -> None:
    """Check a request, whose body is `body`, before an engine parses it. Raises BadRequest."""
    for name in request.keys() & _TYPES.keys():
        if not isinstance(request[name], (*_TYPES[name], type(None))):
            raise BadRequest(f"`{name}` is not {' or '.join(_WORDS[each] for each in _TYPES[name])}")
    level: list[Any] = [request] if body.count(b":") > _MAX_PAIRS else []
    while level:
        if any(isinstance(value, dict) and len(value) > _MAX_PAIRS for value in level):
            raise BadRequest(f"the body has over {_MAX_PAIRS:,} keys in one object")
        inner = chain.from_iterable(v.values() if isinstance(v, dict) else v for v in level)
        level = [value for value in inner if isinstance(value, dict | list)]
    breakers = request.get("dry_sequence_breakers")
    if isinstance(breakers, list) and len(breakers) > _MAX_BREAKERS:
        raise BadRequest(f"`dry_sequence_breakers` has over {_MAX_BREAKERS} values")
    _check_grammar(request)


def check_fault(status: int, reason: str | None) -> None:
    """Raise BadRequest for an engine's 500 that tells of a wrong type within a field, as llama.cpp's does."""
    if status == 500 and reason is not None and reason.startswith(_FAULTS):
        raise BadRequest(reason)


def _check_grammar(request: Mapping[str, Any]) -> None:
    """Check grammars and schemas, and the patterns in them."""
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
                elif isinstance(value, str) and value.count("|") > _MAX_CHOICES:
                    raise BadRequest(f"`{name}` has over {_MAX_CHOICES:,} alternatives")
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
