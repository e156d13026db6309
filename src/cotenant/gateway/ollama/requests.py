"""Translates requests in Ollama's API to OpenAI's, which every engine supports.

They ask for a stream where the client does; `responses` converts either to what the client requested.
"""

import base64
import binascii
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from cotenant.domain.errors import BadRequest, NotOffered
from cotenant.gateway.ollama.fields import Fields, items, mapping, objects, switch, text

_LOG = logging.getLogger("cotenant.gateway")

_WHOLE: Final = ("num_predict", "num_keep", "seed", "top_k", "repeat_last_n", "mirostat")
_FRACTIONS: Final = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "mirostat_tau",
    "mirostat_eta",
)
_RENAMED: Final[Mapping[str, str]] = {"num_predict": "max_tokens", "num_keep": "n_keep"}
"""Options that have another name in OpenAI's API or in llama.cpp's additions to it."""

_IMAGE_TYPES: Final = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
    (b"BM", "image/bmp"),
)
_MAX_LOG_PROBABILITIES: Final = 20
_UNKNOWN_CALL: Final = "call_0"
_CHAT_FIELDS: Final = ("format", "images", "suffix")

_logged: set[tuple[str, ...]] = set()


def chat_request(fields: Fields, model: str, n_ctx: int) -> dict[str, Any]:
    """Translate a request to /api/chat into one to /v1/chat/completions. Raises BadRequest."""
    request = {"model": model, "messages": list(_messages(fields)), **_common(fields, n_ctx)}
    tools = objects(fields, "tools")
    if tools:
        request["tools"] = tools
    return request


def generate_request(fields: Fields, model: str, n_ctx: int) -> dict[str, Any]:
    """Translate a request to /api/generate into a chat with one message.

    Raises BadRequest, or NotOffered for features of Ollama's own templates.
    """
    for name, instead in (
        ("suffix", "Write the model's own markers for it into a `raw` prompt."),
        ("template", "Serve the model with its own chat template, or send `raw` prompts."),
        ("context", "Send the conversation to /api/chat."),
    ):
        if fields.get(name):
            raise NotOffered(f"`{name}` is not offered here", hint=instead)
    messages = []
    if system := text(fields, "system"):
        messages.append({"role": "system", "content": system})
    messages.append({"role": "user", "content": _content(text(fields, "prompt"), items(fields, "images"))})
    return {"model": model, "messages": messages, **_common(fields, n_ctx)}


def raw_request(fields: Fields, model: str, n_ctx: int) -> dict[str, Any]:
    """Translate a request to /api/generate with a raw prompt into one to /v1/completions.

    Raises BadRequest, or NotOffered for fields that only chats support.
    """
    for name in ("system", "template", "context"):
        if fields.get(name):
            raise BadRequest(f"`raw` and `{name}` exclude each other", hint="Leave out one of them.")
    for name in _CHAT_FIELDS:
        if fields.get(name):
            raise NotOffered(f"`{name}` of a `raw` prompt is not offered here", hint="Leave out `raw`.")
    common = _common(fields, n_ctx)
    if common.pop("logprobs", False):
        most = common.pop("top_logprobs", 1)
        # In this older API, `logprobs` is a number; llama.cpp calls it `n_probs`.
        common |= {"logprobs": most, "n_probs": most}
    return {"model": model, "prompt": text(fields, "prompt"), **common}


def stands_alone(fields: Fields) -> bool:
    """Whether a request to /api/generate only asks for the continuation of its prompt."""
    return not any(fields.get(name) for name in ("system", "template", "context", *_CHAT_FIELDS))


def embed_texts(fields: Fields) -> list[str]:
    """Read the texts of a request to /api/embed; empty if it only loads the model. Raises BadRequest."""
    given = fields.get("input")
    texts = given if isinstance(given, list) else [given] if given not in (None, "") else []
    if any(not isinstance(each, str) for each in texts):
        raise BadRequest("`input` is not a text or a list of texts", hint="Send at least one text.")
    return texts


def embed_dimensions(fields: Fields) -> int | None:
    """Read the length to which vectors are truncated; None for full length. Raises BadRequest."""
    dimensions = fields.get("dimensions")
    if dimensions is not None and type(dimensions) is not int:
        raise BadRequest(f"`dimensions` is not a number but {dimensions!r}"[:120])
    return dimensions if dimensions is not None and dimensions > 0 else None


def embed_request(fields: Fields, model: str, texts: Sequence[str | list[int]]) -> dict[str, Any]:
    """Make the request to /v1/embeddings; a text may be given as its tokens. Raises BadRequest."""
    _options(fields, 0)
    return {"model": model, "input": texts, "encoding_format": "float", **_kept(fields)}


def asks_for_nothing(fields: Fields) -> bool:
    """Whether a request only loads or unloads its model. Raises BadRequest."""
    return not (objects(fields, "messages") or text(fields, "prompt") or items(fields, "images"))


def _common(fields: Fields, n_ctx: int) -> dict[str, Any]:
    return {
        **_options(fields, n_ctx),
        **_format(fields),
        **_thinking(fields),
        **_log_probabilities(fields),
        **_kept(fields),
    }


def _kept(fields: Fields) -> dict[str, Any]:
    keep_alive = fields.get("keep_alive")
    return {} if keep_alive is None else {"keep_alive": keep_alive}


def _options(fields: Fields, n_ctx: int) -> dict[str, Any]:
    """Translate sampling options; options for loading are left out: the operator sets them.

    `n_ctx` is the model's context, 0 if it is unknown.
    """
    options = mapping(fields, "options")
    translated: dict[str, Any] = {}
    for name in (*_WHOLE, *_FRACTIONS):
        value = options.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadRequest(f"`options.{name}` is not a number but {value!r}"[:120])
        if name in _WHOLE:
            # Truncated as Ollama does: clients with only one number type may send it with a fraction.
            value = int(value) if math.isfinite(value) else 0
        translated[_RENAMED.get(name, name)] = value
    if translated.get("max_tokens", 1) <= 0:
        # In Ollama, 0 and -1 mean no limit, and -2 the context length, where llama.cpp always stops.
        del translated["max_tokens"]
    if translated.get("repeat_last_n", 0) < 0:
        # In Ollama, this means the whole context; engines take a number.
        del translated["repeat_last_n"]
        translated |= {"repeat_last_n": n_ctx} if n_ctx else {}
    if translated.get("repeat_penalty", 1) <= 0:
        del translated["repeat_penalty"]  # means none to some clients; engines divide by it
    stop = options.get("stop")
    if stop is not None:
        stops = stop if isinstance(stop, list) else [stop]
        if any(not isinstance(each, str) for each in stops):
            raise BadRequest("`options.stop` is not a text or a list of texts")
        translated["stop"] = stops
    _log_ignored(tuple(sorted(options.keys() - {*_WHOLE, *_FRACTIONS, "stop"})))
    return translated


def _log_ignored(names: tuple[str, ...]) -> None:
    """Log ignored options once: clients send the same options with every request."""
    if names and names not in _logged and len(_logged) < 100:
        _logged.add(names)
        shown = ", ".join(name[:40] for name in names[:20])
        _LOG.info("options of Ollama's API are ignored, since the configuration sets them: %s", shown)


def _format(fields: Fields) -> dict[str, Any]:
    wanted = fields.get("format")
    if wanted in (None, ""):
        return {}
    if wanted == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(wanted, dict):
        schema = {"name": "answer", "schema": wanted, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    raise BadRequest('`format` is neither "json" nor a JSON schema', hint="Leave it out for plain text.")


def _thinking(fields: Fields) -> dict[str, Any]:
    think = fields.get("think")
    if think is None:
        return {}
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    if think in ("low", "medium", "high"):
        return {"reasoning_effort": think}
    raise BadRequest("`think` is neither true, false, low, medium nor high")


def _log_probabilities(fields: Fields) -> dict[str, Any]:
    count = fields.get("top_logprobs") or 0
    if type(count) is not int or not 0 <= count <= _MAX_LOG_PROBABILITIES:
        raise BadRequest(f"`top_logprobs` is not a number from 0 to {_MAX_LOG_PROBABILITIES}")
    if not switch(fields, "logprobs", False):
        return {}
    return {"logprobs": True, **({"top_logprobs": count} if count else {})}


def _messages(fields: Fields) -> Iterator[dict[str, Any]]:
    """Translate messages; tool calls get ids, with which OpenAI's API matches their results."""
    open_calls: list[tuple[str, str]] = []
    n_calls = 0
    for message in objects(fields, "messages"):
        translated: dict[str, Any] = {"role": text(message, "role", "user")}
        translated["content"] = _content(text(message, "content"), items(message, "images"))
        if thinking := text(message, "thinking"):
            # llama.cpp's name, and that of vLLM since 0.12.
            translated |= {"reasoning_content": thinking, "reasoning": thinking}
        calls = []
        for call in objects(message, "tool_calls"):
            function = mapping(call, "function")
            n_calls += 1
            name, number = text(function, "name"), text(call, "id", f"call_{n_calls}")
            open_calls.append((name, number))
            arguments = json.dumps(mapping(function, "arguments"))
            calls.append(
                {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}
            )
        if calls:
            translated["tool_calls"] = calls
        if translated["role"] == "tool":
            name = text(message, "tool_name") or text(message, "name")
            translated["tool_call_id"] = text(message, "tool_call_id") or _answered(open_calls, name)
        yield translated


def _answered(open_calls: list[tuple[str, str]], name: str) -> str:
    """Take the oldest call that a result belongs to: a call of the tool `name`, if it is not empty.

    As in Ollama, a result without a call is accepted: clients that drop old messages send it.
    """
    for call in open_calls:
        if not name or call[0] == name:
            open_calls.remove(call)
            return call[1]
    return _UNKNOWN_CALL


def _content(words: str, images: Any) -> Any:
    """Return a message's content: a text, or a list of parts if there are images."""
    if not images:
        return words
    parts: list[dict[str, Any]] = [{"type": "text", "text": words}] if words else []
    parts += [{"type": "image_url", "image_url": {"url": _image_url(image)}} for image in images]
    return parts


def _image_url(image: object) -> str:
    if not isinstance(image, str):
        raise BadRequest("an image is not a text", hint="Send each image in base64.")
    if image.startswith("data:image/"):
        return image
    # Four characters encode three bytes; the first few bytes show the image type.
    try:
        magic = base64.b64decode(image[:8], validate=True)
    except (binascii.Error, ValueError):
        magic = b""
    kind = next((kind for start, kind in _IMAGE_TYPES if magic.startswith(start)), None)
    if kind is None:
        raise BadRequest(
            "an image is not PNG, JPEG, GIF, WebP or BMP in base64", hint="Send its bytes in base64."
        )
    return f"data:{kind};base64,{image}"
