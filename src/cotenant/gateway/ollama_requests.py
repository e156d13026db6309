"""Requests in Ollama's API as requests in OpenAI's, which every engine answers.

Translated requests always ask for a stream: `ollama_answers` makes of it what the client wants.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

from cotenant.domain.errors import BadRequest, NotOffered
from cotenant.gateway.ollama_fields import Fields, items, mapping, objects, text

_LOG = logging.getLogger("cotenant.gateway")

_SAMPLING: Final[Mapping[str, tuple[str, type | tuple[type, ...]]]] = {
    "num_predict": ("max_tokens", int),
    "num_keep": ("n_keep", int),
    "seed": ("seed", int),
    "top_k": ("top_k", int),
    "repeat_last_n": ("repeat_last_n", int),
    "mirostat": ("mirostat", int),
    "temperature": ("temperature", (int, float)),
    "top_p": ("top_p", (int, float)),
    "min_p": ("min_p", (int, float)),
    "typical_p": ("typical_p", (int, float)),
    "repeat_penalty": ("repeat_penalty", (int, float)),
    "presence_penalty": ("presence_penalty", (int, float)),
    "frequency_penalty": ("frequency_penalty", (int, float)),
    "mirostat_tau": ("mirostat_tau", (int, float)),
    "mirostat_eta": ("mirostat_eta", (int, float)),
}
"""Ollama's options, by the names that llama.cpp has for them beside OpenAI's."""

_IMAGE_TYPES: Final = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
    (b"BM", "image/bmp"),
)
_MAGIC_CHARACTERS: Final = 8
_STREAM: Final = {"stream": True, "stream_options": {"include_usage": True}}

_told_of: set[tuple[str, ...]] = set()


def chat_request(fields: Fields, model: str) -> dict[str, Any]:
    """Translate a request to /api/chat into one to /v1/chat/completions. Raises BadRequest."""
    request = {"model": model, "messages": list(_messages(fields)), **_STREAM, **_common(fields)}
    tools = objects(fields, "tools")
    if tools:
        request["tools"] = tools
    return request


def generate_request(fields: Fields, model: str) -> dict[str, Any]:
    """Translate a request to /api/generate into a chat of one prompt.

    Raises BadRequest, or NotOffered for what only Ollama's own templates can do.
    """
    for name, instead in (
        ("suffix", "Ask llama.cpp's /infill, or write the model's own markers into a `raw` prompt."),
        ("template", "Serve the model with its own chat template, or send `raw` prompts."),
        ("context", "Send the conversation to /api/chat."),
    ):
        if fields.get(name):
            raise NotOffered(f"`{name}` is not offered here", hint=instead)
    messages = []
    if system := text(fields, "system"):
        messages.append({"role": "system", "content": system})
    messages.append({"role": "user", "content": _content(text(fields, "prompt"), items(fields, "images"))})
    return {"model": model, "messages": messages, **_STREAM, **_common(fields)}


def raw_request(fields: Fields, model: str) -> dict[str, Any]:
    """Translate a `raw` request to /api/generate into one to /v1/completions. Raises BadRequest."""
    for name in ("format", "images", "system", "template", "suffix"):
        if fields.get(name):
            raise BadRequest(f"`raw` and `{name}` exclude each other", hint="Leave out one of them.")
    return {"model": model, "prompt": text(fields, "prompt"), **_STREAM, **_common(fields)}


def embed_request(fields: Fields, model: str) -> dict[str, Any]:
    """Translate a request to /api/embed into one to /v1/embeddings. Raises BadRequest."""
    given = fields.get("input")
    texts = given if isinstance(given, list) else [given]
    if not texts or any(not isinstance(each, str) for each in texts):
        raise BadRequest("`input` is not a text or a list of texts", hint="Send one text at least.")
    dimensions = fields.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise BadRequest(f"`dimensions` is not a number above 0 but {dimensions!r}"[:120])
    _options(fields)
    return {"model": model, "input": texts, "encoding_format": "float", **_kept(fields)}


def asks_for_nothing(fields: Fields) -> bool:
    """Whether a request only loads or unloads its model. Raises BadRequest."""
    return not (objects(fields, "messages") or text(fields, "prompt") or items(fields, "images"))


def _common(fields: Fields) -> dict[str, Any]:
    return {**_options(fields), **_format(fields), **_thinking(fields), **_kept(fields)}


def _kept(fields: Fields) -> dict[str, Any]:
    keep_alive = fields.get("keep_alive")
    return {} if keep_alive is None else {"keep_alive": keep_alive}


def _options(fields: Fields) -> dict[str, Any]:
    """Translate the options of sampling; those of loading are the operator's to set, and are left out."""
    options = mapping(fields, "options")
    told: dict[str, Any] = {}
    for name, (ours, kinds) in _SAMPLING.items():
        value = options.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise BadRequest(f"`options.{name}` is not a number but {value!r}"[:120])
        told[ours] = value
    if told.get("max_tokens", 0) < 0:
        # Ollama's -1 is no limit, and -2 the context's own: llama.cpp stops there in any case.
        del told["max_tokens"]
    stop = options.get("stop")
    if stop is not None:
        stops = stop if isinstance(stop, list) else [stop]
        if any(not isinstance(each, str) for each in stops):
            raise BadRequest("`options.stop` is not a text or a list of texts")
        told["stop"] = stops
    _tell_of_ignored(tuple(sorted(options.keys() - _SAMPLING.keys() - {"stop"})))
    return told


def _tell_of_ignored(names: tuple[str, ...]) -> None:
    """Say once what is ignored: clients send the same options with every request."""
    if names and names not in _told_of and len(_told_of) < 100:
        _told_of.add(names)
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


def _messages(fields: Fields) -> Iterator[dict[str, Any]]:
    """Translate messages; calls of tools get the ids by which OpenAI joins results to them."""
    open_calls: list[tuple[str, str]] = []
    n_calls = 0
    for message in objects(fields, "messages"):
        told: dict[str, Any] = {"role": text(message, "role", "user")}
        told["content"] = _content(text(message, "content"), items(message, "images"))
        if thinking := text(message, "thinking"):
            told["reasoning_content"] = thinking
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
            told["tool_calls"] = calls
        if told["role"] == "tool":
            name = text(message, "tool_name") or text(message, "name")
            told["tool_call_id"] = text(message, "tool_call_id") or _answered(open_calls, name)
        yield told


def _answered(open_calls: list[tuple[str, str]], name: str) -> str:
    """Take the oldest call that a result is of: of the tool that it names, if it does."""
    for call in open_calls:
        if not name or call[0] == name:
            open_calls.remove(call)
            return call[1]
    raise BadRequest(
        f"a message of role `tool` answers no call{f' of {name[:60]}' if name else ''}",
        hint="Send the assistant's message with its `tool_calls` before it.",
    )


def _content(words: str, images: Any) -> Any:
    """Return a message's content: a text, or parts where there are images."""
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
    # Four characters are three bytes: the first few say what it is.
    try:
        magic = base64.b64decode(image[:_MAGIC_CHARACTERS], validate=True)
    except (binascii.Error, ValueError):
        magic = b""
    kind = next((kind for start, kind in _IMAGE_TYPES if magic.startswith(start)), None)
    if kind is None:
        raise BadRequest(
            "an image is not PNG, JPEG, GIF, WebP or BMP in base64", hint="Send its bytes in base64."
        )
    return f"data:{kind};base64,{image}"
