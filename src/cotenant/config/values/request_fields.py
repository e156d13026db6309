"""Parsers of rules about fields of requests: their names, their values, their limits."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from cotenant.config.issues import shown
from cotenant.config.scalars import Scalar, matching, scalar
from cotenant.config.yaml_document import Unquoted
from cotenant.domain.errors import BadSetting

_GATEWAYS: Final = frozenset(
    {"model", "messages", "prompt", "input", "stream", "stream_options", "keep_alive", "id_slot"}
)
"""What makes the request, or what the gateway itself decides by."""
_SPELLINGS: Final = {
    **dict.fromkeys(("max_completion_tokens", "max_output_tokens", "n_predict", "num_predict"), "max_tokens"),
    "stop_sequences": "stop",
    "reasoning": "reasoning_effort",
    "output_config": "reasoning_effort",
    "think": "reasoning_effort, or chat_template_kwargs: {enable_thinking: false}",
}
_FIELD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_WORDS: Final = {"true": True, "false": False}
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@scalar(type="string", examples=["temperature", "max_tokens"])
def name(value: Any) -> str:
    """The name of a field, as in OpenAI's chats."""
    if not isinstance(value, str) or not _FIELD.fullmatch(value):
        raise BadSetting(f"{shown(value)} is not the name of a field", hint="Write it as in a request.")
    if value in _GATEWAYS:
        raise BadSetting(f"{value} is the client's to say", hint="Rules are about other fields.")
    if value in _SPELLINGS:
        raise BadSetting(f"rules have one name for {value} in every API", hint=f"Write {_SPELLINGS[value]}.")
    return str(value)


def _fields(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadSetting(f"{shown(value)} is not a mapping", hint="Write it as {temperature: 0.6}.")
    return {name.read(field): each for field, each in value.items()}


@scalar(type="object", examples=[{"temperature": 0.6, "chat_template_kwargs": {"enable_thinking": False}}])
def values(value: Any) -> dict[str, Any]:
    """Fields with any values of JSON; what is written without quotes may be a number, true or false."""
    return {field: _json(each) for field, each in _fields(value).items()}


@scalar(type="object", additionalProperties={"type": "number"}, examples=[{"max_tokens": 4096}])
def limits(value: Any) -> dict[str, float]:
    """Fields with the most that each may be."""
    found = {
        field: _json(Unquoted(each) if isinstance(each, str) else each)
        for field, each in _fields(value).items()
    }
    for field, most in found.items():
        if isinstance(most, bool) or not isinstance(most, (int, float)):
            raise BadSetting(f"{field}: {shown(most)} is not a number", hint="Write the most it may be.")
        if field == "max_tokens" and (not isinstance(most, int) or most < 1):
            raise BadSetting(f"max_tokens: {most} is not a number of tokens", hint="Write 1 or more.")
    return found


variant: Final[Scalar] = matching(
    r"(?!latest$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
    "the name of a variant",
    "Use at most 64 letters, digits and . _ -; `latest` means the model itself.",
)
"""What follows the colon in the name of a variant."""


def _json(value: Any) -> Any:
    """Return a value of the file as JSON has it. Raises BadSetting for a number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(field): _json(each) for field, each in value.items()}
    if isinstance(value, list):
        return [_json(each) for each in value]
    if not isinstance(value, Unquoted):
        return value
    if value in _WORDS:
        return _WORDS[value]
    if not _NUMBER.fullmatch(value):
        return str(value)
    number = json.loads(value)
    if not math.isfinite(number):
        raise BadSetting(f"{shown(value)} is too large a number", hint="Write a smaller one.")
    return number
