"""Paths as people type them in base URLs, and the dialect in which an unknown one is refused."""

from typing import Final

from cotenant.asgi import Scope
from cotenant.gateway.inference.dialects import TARGETS, ErrorForm, anthropic_error, ollama_error
from cotenant.gateway.inference.upstream import UPSTREAM

_V1: Final = "/v1"
_ROUTERS: Final = ("/models/load", "/models/unload")
"""What llama-server's router offers beside its `/v1`."""
_ELSEWHERE: Final = {
    "/running": "GET /api/models lists the models with their states.",
    "/unload": "POST /api/models/{name}/unload unloads a model.",
    "/logs": "GET /api/models/{name}/logs has an engine's log.",
    "/logs/stream": "GET /api/models/{name}/logs?follow=1 has an engine's log.",
    **dict.fromkeys(
        ("/props", "/slots", "/lora-adapters", "/sdapi"), "An engine's own paths are below /upstream/{model}."
    ),
}
"""What others offer at paths that are not offered here."""


def tidy(scope: Scope) -> None:
    """Replace a path by the one that is meant: without a slash, or a `/v1`, too many or too few."""
    path: str = scope["path"]
    if path.startswith(UPSTREAM):
        return
    if "//" in path or path.endswith("/"):
        raw: bytes = scope.get("raw_path") or path.encode()
        path = scope["path"] = "/" + "/".join(filter(None, path.split("/")))
        scope["raw_path"] = b"/" + b"/".join(filter(None, raw.split(b"/")))
    rest = path.removeprefix(_V1)
    is_order = scope["method"] == "POST" and rest in _ROUTERS
    above = is_order or rest in TARGETS or rest == "/health" or rest.startswith((f"{_V1}/", "/api/"))
    if f"{_V1}{path}" in TARGETS or (path == "/models" and not is_browser(scope)):
        scope["path"] = f"{_V1}{path}"
        scope["raw_path"] = scope["path"].encode()
    elif rest != path and above:
        scope["path"] = rest
        scope["raw_path"] = (scope.get("raw_path") or path.encode()).removeprefix(_V1.encode())


def form_of_unknown(scope: Scope) -> ErrorForm | None:
    """Return the form of errors of whoever asks for a path that is not offered, None for OpenAI's."""
    headers, path = dict(scope["headers"]), scope["path"]
    if path.startswith(UPSTREAM):
        return None
    if path.startswith("/v1/messages/") or b"anthropic-version" in headers:
        return anthropic_error
    agent: bytes = headers.get(b"user-agent", b"")
    return ollama_error if path.startswith("/api/") and agent.lower().startswith(b"ollama") else None


def hint_for_unknown(path: str) -> str:
    """Return what to ask in place of a path that is not offered."""
    for known in (path, path.rpartition("/")[0], "/" + path.split("/")[1]):
        if known in _ELSEWHERE:
            return _ELSEWHERE[known]
    if path.startswith("/api/"):
        return "The operator's API begins at /api/models."
    if path.startswith(_V1):
        offered = dict.fromkeys(target.path.decode() for target in TARGETS.values())
        return f"Offered are {', '.join(each for each in offered if each.startswith(_V1))}."
    return "OpenAI's API is under /v1."


def is_browser(scope: Scope) -> bool:
    """Whether an unknown path is told as a page; programs get an error in JSON."""
    return scope["method"] in ("GET", "HEAD") and b"html" in dict(scope["headers"]).get(b"accept", b"")
