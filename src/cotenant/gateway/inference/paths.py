"""Paths as people type them in base URLs, and the dialect in which an unknown one is refused."""

from cotenant.asgi import Scope
from cotenant.gateway.inference.dialects import TARGETS, ErrorForm, anthropic_error, ollama_error
from cotenant.gateway.inference.upstream import UPSTREAM

_V1 = "/v1"


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
    if f"{_V1}{path}" in TARGETS or (path == "/models" and not is_browser(scope)):
        scope["path"] = f"{_V1}{path}"
        scope["raw_path"] = scope["path"].encode()
    elif rest != path and (rest in TARGETS or rest.startswith((f"{_V1}/", "/api/"))):
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


def is_browser(scope: Scope) -> bool:
    """Whether an unknown path is told as a page; programs get an error in JSON."""
    return scope["method"] in ("GET", "HEAD") and b"html" in dict(scope["headers"]).get(b"accept", b"")
