"""Applies a model's rules to a request, in the names of the client's dialect.

Rules have the names of OpenAI's chats. A request in Ollama's dialect has been translated to one. Others:

    rule               /v1/responses       /v1/messages           /completion, /infill
    max_tokens         max_output_tokens   max_tokens             n_predict
    reasoning_effort   reasoning.effort    output_config.effort
    stop                                   stop_sequences
"""

from collections.abc import Mapping
from typing import Any, Final

from cotenant.domain.errors import BadRequest
from cotenant.domain.requests import RequestRules, overlaid
from cotenant.gateway.inference.assembly import TOKEN_LIMITS
from cotenant.gateway.inference.dialects import Target

_TOKENS: Final = "max_tokens"
_EFFORT: Final = "reasoning_effort"
_OWN_LIMITS: Final[Mapping[bytes, tuple[str, ...]]] = {
    b"/v1/chat/completions": (_TOKENS, "max_completion_tokens"),
    b"/v1/completions": (_TOKENS,),
    b"/v1/messages": (_TOKENS,),
    b"/v1/responses": ("max_output_tokens",),
    b"/completion": ("n_predict",),
    b"/infill": ("n_predict",),
}
"""What limits an answer's tokens, by path; the first is what a request gets that has none."""
_NESTED: Final = {
    b"/v1/responses": {_EFFORT: ("reasoning", "effort")},
    b"/v1/messages": {_EFFORT: ("output_config", "effort")},
}
_RENAMED: Final = {b"/v1/messages": {"stop": "stop_sequences"}}
_ADAPTERS: Final = "lora"
_WITHOUT_ADAPTERS: Final = b"/v1/messages"
"""`server_chat_convert_anthropic_to_oai` of llama-server leaves the field out."""
_UNRULED: Final = frozenset({b"/tokenize", b"/detokenize"})


def ruled(request: Mapping[str, Any], rules: RequestRules, target: Target, name: str) -> dict[str, Any]:
    """Return a request for the model `name` that follows its rules. Raises BadRequest."""
    changed = {**request, "model": name}
    if target.path in _UNRULED:
        return changed
    if _ADAPTERS in rules.set and target.path == _WITHOUT_ADAPTERS:
        raise BadRequest(
            "llama.cpp reads no adapters in this API, and other names of this model have some",
            hint="Use /v1/chat/completions.",
        )
    for field in rules.strip:
        _remove(changed, field, target.path)
    for field, value in rules.set.items():
        _set(changed, field, value, target.path)
    for field, most in rules.limit.items():
        if field == _TOKENS:
            _limit_tokens(changed, int(most), target.path)
        else:
            field = _RENAMED.get(target.path, {}).get(field, field)
            changed.update(_lowered(changed, field, most))
    return changed


def _remove(request: dict[str, Any], field: str, path: bytes) -> None:
    for spelling in TOKEN_LIMITS if field == _TOKENS else (field, _RENAMED.get(path, {}).get(field, field)):
        request.pop(spelling, None)
    if (nested := _NESTED.get(path, {}).get(field)) is not None:
        outer, inner = nested
        if isinstance(request.get(outer), dict):
            request[outer] = {key: each for key, each in request[outer].items() if key != inner}


def _set(request: dict[str, Any], field: str, value: Any, path: bytes) -> None:
    if field == _TOKENS:
        own = _OWN_LIMITS.get(path)
        if own is None:
            return
        _remove(request, field, path)
        field = own[0]
    elif (nested := _NESTED.get(path, {}).get(field)) is not None:
        field, value = nested[0], {nested[1]: value}
    else:
        field = _RENAMED.get(path, {}).get(field, field)
    request.update(overlaid({field: request.get(field)}, {field: value}))


def _limit_tokens(request: dict[str, Any], most: int, path: bytes) -> None:
    """Limit every spelling, of which an engine may take any, and give one to a request that has none."""
    own = _OWN_LIMITS.get(path)
    if own is None:
        return
    for spelling in TOKEN_LIMITS:
        changed = _lowered(request, spelling, most)
        # Less than none is no limit to llama.cpp.
        request.update({key: most if value < 0 else value for key, value in changed.items()})
    if all(request.get(spelling) is None for spelling in own):
        request[own[0]] = min([most, *(n for each in TOKEN_LIMITS if (n := request.get(each)) is not None)])


def _lowered(request: Mapping[str, Any], field: str, most: float) -> dict[str, Any]:
    """Return the field with a value of at most `most`; nothing if the request has none."""
    value = request.get(field)
    if value is None:
        return {}
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f"`{field}` is not a number but {value!r}"[:160])
    return {field: min(value, most)}
